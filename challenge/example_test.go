package challenge_test

import (
	"context"
	"fmt"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/challenge/challengetest"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/scep"
)

// While a secret is being changed, the old one and the new one are both good.
func ExampleStatic() {
	c := challenge.Static("old secret", "new secret")
	for _, secret := range []string{"old secret", "new secret", "no secret"} {
		err := c.Validate(context.Background(), challengetest.Request(secret))
		fmt.Println(err == nil)
	}
	// Output:
	// true
	// true
	// false
}

// The configuration file holds a hash, which somebody made with [challenge.Hash].
func ExampleStaticHashed() {
	inFile := challenge.Hash("secret")

	c, err := challenge.StaticHashed(inFile)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(c.Validate(context.Background(), challengetest.Request("secret")))
	// Output: <nil>
}

// An MDM server asks for a challenge for each device, and puts it into the device's profile.
func ExampleOneTime() {
	ctx := context.Background()
	oneTime := &challenge.OneTime{Store: &depot.Memory{}} // in service, the depot that is Config.Depot

	secret, err := oneTime.New(ctx, challenge.Binding{Subject: "CN=device-1"})
	if err != nil {
		fmt.Println(err)
		return
	}

	// scep.Config{Challenge: oneTime} does the rest.
	first := challengetest.Request(secret.Reveal())
	fmt.Println("first device:", oneTime.Validate(ctx, first) == nil)
	fmt.Println("its retry:", oneTime.Validate(ctx, first) == nil)
	fmt.Println("another device:", oneTime.Validate(ctx, challengetest.Request(secret.Reveal())) == nil)
	// Output:
	// first device: true
	// its retry: true
	// another device: false
}

// Devices from the MDM bring a challenge of their own; everybody else waits for a person.
func ExampleAny() {
	c := challenge.Any(
		&challenge.OneTime{Store: &depot.Memory{}},
		scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error { return scep.ErrPending }),
	)
	fmt.Println(c.Validate(context.Background(), challengetest.Request("")))
	// Output: scep: waiting for approval
}
