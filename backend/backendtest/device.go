//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package backendtest

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/scepkit/scepkit/backend"
)

func newInt(b []byte) *big.Int { return new(big.Int).SetBytes(b) }

// A use is one thing that the key does.
type use struct {
	name string
	do   func(ctx context.Context) error

	promptly time.Duration
}

// uses returns all that the key can do.
func (b *bench) uses() []use {
	all := []use{{"signing", b.sign, b.promptly}}
	if _, _, err := b.unwrapper(); err == nil {
		all = append(all, use{"decrypting", func(ctx context.Context) error { return b.unwrap(ctx, 16, &rsa.PKCS1v15DecryptOptions{}) }, b.promptly})
	}
	return all
}

// soon reports the error of u, and hung if it does not come back.
func (u use) soon(ctx context.Context) (err error, hung bool) {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- panicked{p}
			}
		}()
		done <- u.do(ctx)
	}()
	select {
	case err := <-done:
		return err, false
	case <-time.After(u.promptly):
		return nil, true
	}
}

// panicked is a panic, which is never the error that is wanted.
type panicked struct{ value any }

func (p panicked) Error() string { return fmt.Sprintf("panic: %v", p.value) }

// refused reports why what u does is not refused, with an error that wraps one of these, if any.
func (u use) refused(ctx context.Context, when string, wraps ...error) error {
	err, hung := u.soon(ctx)
	var p panicked
	switch {
	case hung:
		return fmt.Errorf("%s %s: not done after %v", u.name, when, u.promptly)
	case errors.As(err, &p):
		return fmt.Errorf("%s %s: %w", u.name, when, p)
	case err == nil:
		return fmt.Errorf("%s %s works", u.name, when)
	case len(wraps) > 0 && !slices.ContainsFunc(wraps, func(w error) bool { return errors.Is(err, w) }):
		return fmt.Errorf("%s %s: the error wraps none of %q: %w", u.name, when, wraps, err)
	}
	return nil
}

var deviceClauses = []clause{{
	name:     "Cancelled",
	contract: "Key has the method SignContext that scep.Identity describes: it and UnwrapKey return an error as soon as the context has ended.",
	check: func(ctx context.Context, b *bench) error {
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, ok := b.Key.(contextSigner); !ok {
			return gap(fmt.Sprintf("%T has no SignContext", b.Key))
		}
		for _, u := range b.uses() {
			if err := u.refused(ended, "under an ended context"); err != nil {
				return err
			}
			if err := u.do(ctx); err != nil {
				return fmt.Errorf("after that: %w", err)
			}
		}
		// A malformed block is none of random bytes then.
		if u, pub, err := b.unwrapper(); err == nil {
			if _, err := u.UnwrapKey(ended, make([]byte, pub.Size()), 16, &rsa.PKCS1v15DecryptOptions{}); err == nil {
				return errors.New("decrypting a malformed block under an ended context works")
			}
		}
		return nil
	},
}, {
	name:     "Concurrent",
	contract: "Key and the identity may be used concurrently.",
	check: func(ctx context.Context, b *bench) error {
		uses := b.uses()
		errs := make([]error, 64)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() {
				defer func() {
					if p := recover(); p != nil {
						errs[i] = panicked{p}
					}
				}()
				for j := range 2 {
					u := uses[(i+j)%len(uses)]
					if err := u.do(ctx); err != nil {
						errs[i] = fmt.Errorf("%s beside others: %w", u.name, err)
					}
				}
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	},
}, {
	name:     "Reopened",
	contract: "A backend returns a private key, wherever it lives, and its certificates: opened again, the same ones.",
	check: func(ctx context.Context, b *bench) error {
		again := &bench{b.h.Open(b.t), b.h, b.t, b.promptly}
		pub, ok := again.Key.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok || !pub.Equal(b.Key.Public()) {
			return errors.New("opened again, it is another key")
		}
		if len(again.Certificates) != len(b.Certificates) {
			return fmt.Errorf("opened again, there are %d certificates; there were %d", len(again.Certificates), len(b.Certificates))
		}
		for i, cert := range b.Certificates {
			if !cert.Equal(again.Certificates[i]) {
				return fmt.Errorf("opened again, certificate %d is another", i)
			}
		}
		for _, each := range []*bench{again, b} {
			for _, u := range each.uses() {
				if err := u.do(ctx); err != nil {
					return fmt.Errorf("opened twice: %w", err)
				}
			}
		}
		return nil
	},
}, {
	name:     "Closed",
	contract: "Closing ends the use of its identities, which from then on give errors.",
	check: func(ctx context.Context, b *bench) error {
		if b.h.Close == nil {
			return gap("the harness has no Close")
		}
		if err := b.sign(ctx); err != nil {
			return err
		}
		b.h.Close(b.t, b.Identity)
		for _, u := range b.uses() {
			if err := u.refused(ctx, "after Close"); err != nil {
				return err
			}
		}
		return nil
	},
}, {
	name:     "Pulled",
	contract: "ErrUnavailable says that the key or its device does not answer now: try it again later.",
	check:    pulledCheck,
}}

// pulledCheck takes the device away and puts it back.
func pulledCheck(ctx context.Context, b *bench) error {
	if b.h.Pull == nil {
		return gap("the harness has no Pull")
	}
	uses := b.uses()
	for _, u := range uses {
		if err := u.do(ctx); err != nil {
			return err
		}
	}
	replace := b.h.Pull(b.t)
	replaced := false
	defer func() {
		if !replaced {
			replace()
		}
	}()
	for _, u := range uses {
		short, cancel := context.WithTimeout(ctx, b.promptly/2)
		err := u.refused(short, "without the device", backend.ErrUnavailable, backend.ErrPIN)
		cancel()
		if err != nil {
			return err
		}
	}
	if u, pub, err := b.unwrapper(); err == nil {
		short, cancel := context.WithTimeout(ctx, b.promptly/2)
		defer cancel()
		block := make([]byte, pub.Size())
		rand.Read(block[1:])
		if _, err := u.UnwrapKey(short, block, 16, &rsa.PKCS1v15DecryptOptions{}); err == nil {
			return errors.New("decrypting a malformed block without the device works")
		}
	}
	replaced = true
	replace()
	for _, u := range uses {
		// A device may take its time to come up, and a backend to try again.
		begun := time.Now()
		for {
			err, _ := u.soon(ctx)
			if err == nil {
				break
			}
			if time.Since(begun) > b.promptly {
				return fmt.Errorf("the device has been back for %v: %w", b.promptly, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	return nil
}
