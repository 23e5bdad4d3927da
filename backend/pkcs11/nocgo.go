//go:build !cgo

package pkcs11

import (
	"fmt"

	"github.com/scepkit/scepkit/backend"
)

func open(c Config) (impl, error) {
	return nil, fmt.Errorf("pkcs11: this program was built without cgo, which PKCS#11 modules need; build it with CGO_ENABLED=1 and a C compiler, or keep the key in a file or TPM: %w", backend.ErrUnsupported)
}
