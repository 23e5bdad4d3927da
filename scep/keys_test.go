package scep_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// The conformance tables run with the keys of CAs and RAs wherever these variables say: each is
// the URI of a key, with {n} for its number, which is made if it is not there. Without them the
// keys are those of sceptest, in memory.
const (
	caKeysVariable = "SCEP_TEST_CA_KEYS"
	raKeysVariable = "SCEP_TEST_RA_KEYS"

	// lacksVariable says what they cannot do: OAEP-SHA2, OAEP-MGF.
	lacksVariable = "SCEP_TEST_LACKS"
)

// deviceKey returns the key with that number of a URI, and the same one every time. They stay
// open as long as the process.
var deviceKey = func() func(uri string, n int) (crypto.Signer, error) {
	var mu sync.Mutex
	opened := map[string]crypto.Signer{}
	drivers := []backend.Driver{file.Driver{}, pkcs11.Driver{}, &tpm.Driver{}}
	return func(uri string, n int) (crypto.Signer, error) {
		mu.Lock()
		defer mu.Unlock()
		uri = strings.ReplaceAll(uri, "{n}", fmt.Sprint(n))
		if key := opened[uri]; key != nil {
			return key, nil
		}
		k, err := backend.OpenKey(context.Background(), uri, drivers...)
		if errors.Is(err, backend.ErrNotFound) {
			k, err = backend.Create(context.Background(), uri, backend.Spec{Decrypt: true}, drivers...)
		}
		if err != nil {
			return nil, err
		}
		opened[uri] = k.Key
		return k.Key, nil
	}
}()

// keysOf returns key, or if there is none the one that the variable names, if it is set.
func keysOf(t testing.TB, variable string, n int, key []crypto.Signer) []crypto.Signer {
	t.Helper()
	uri := os.Getenv(variable)
	if len(key) > 0 || uri == "" {
		return key
	}
	k, err := deviceKey(uri, n)
	if err != nil {
		t.Fatal(err)
	}
	return []crypto.Signer{k}
}

func newCA(t testing.TB, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return sceptest.NewCA(t, keysOf(t, caKeysVariable, 1, key)...)
}

func newSubCA(t testing.TB, parent *scep.Identity, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return sceptest.NewSubCA(t, parent, keysOf(t, caKeysVariable, 2, key)...)
}

func newRA(t testing.TB, ca *scep.Identity, key ...crypto.Signer) *scep.Identity {
	t.Helper()
	return sceptest.NewRA(t, ca, keysOf(t, raKeysVariable, 1, key)...)
}

// newServer is sceptest.NewServer with a CA of newCA and, where raKeysVariable is set, an RA.
func newServer(t testing.TB, c scep.Config) *sceptest.Server {
	t.Helper()
	if c.CA == nil {
		c.CA = newCA(t)
	}
	if ca, ok := c.CA.(*scep.Identity); ok && c.RA == nil && os.Getenv(raKeysVariable) != "" {
		c.RA = newRA(t, ca)
	}
	return sceptest.NewServer(t, c)
}
