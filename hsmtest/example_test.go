package hsmtest_test

import (
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/hsmtest"
)

// In a test of yours: a token for the length of the test, which then loses its sessions.
func Example() {
	_ = func(t *testing.T) {
		token := hsmtest.Fault(t, hsmtest.SoftHSM(t))
		key, err := backend.Create(t.Context(), token.URI("ca"), backend.Spec{}, pkcs11.Driver{})
		if err != nil {
			t.Fatal(err)
		}
		defer key.Close()
		token.Drop()
		if err := key.Check(t.Context()); err != nil {
			t.Error("the key is not found again:", err)
		}
	}
}
