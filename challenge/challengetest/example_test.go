package challengetest_test

import (
	"context"
	"fmt"

	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/challenge/challengetest"
)

// A request to try a challenge with.
func ExampleRequest() {
	c := challenge.Static("secret")
	fmt.Println(c.Validate(context.Background(), challengetest.Request("secret")))
	// Output: <nil>
}
