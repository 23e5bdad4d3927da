//go:build !linux && !windows

package tpm

import (
	"context"
	"fmt"
	"io"
	"runtime"

	"github.com/scepkit/scepkit/backend"
)

const defaultDevice = ""

func dialDevice(_ context.Context, name string) (io.ReadWriteCloser, error) {
	return nil, fmt.Errorf("there is no TPM device %q on %s; name a socket with device=unix:/PATH, or use a key of file: or pkcs11: %w", name, runtime.GOOS, backend.ErrUnsupported)
}
