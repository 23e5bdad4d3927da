//go:build !cgo

package pkcs11_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/pkcs11"
)

func TestNoCgo(t *testing.T) {
	_, err := pkcs11.Open(pkcs11.Config{Module: "/module.so", Token: "ca"})
	if !errors.Is(err, backend.ErrUnsupported) || !strings.Contains(err.Error(), "CGO_ENABLED=1") {
		t.Error(err)
	}
	_, err = backend.Open(t.Context(), "pkcs11:token=ca;object=ca?module-path=/module.so", pkcs11.Driver{})
	if !errors.Is(err, backend.ErrUnsupported) {
		t.Error(err)
	}
}
