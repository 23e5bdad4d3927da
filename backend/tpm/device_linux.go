package tpm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/scepkit/scepkit/backend"
)

// defaultDevice is the resource manager of the kernel, which lets processes share the TPM.
const defaultDevice = "/dev/tpmrm0"

// dialDevice opens a character device. It is opened without the Go runtime's poller: a TPM
// device that is polled answers a read that comes too early with nothing instead of waiting.
func dialDevice(_ context.Context, name string) (io.ReadWriteCloser, error) {
	for {
		fd, err := syscall.Open(name, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		switch {
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("there is no device %s; enable the TPM in the firmware and load its kernel module, name another with device=, or use a key of file: or pkcs11: (%w): %w", name, err, backend.ErrUnsupported)
		case errors.Is(err, fs.ErrPermission):
			return nil, fmt.Errorf("opening %s: %w; run this program in the group that owns it, often tss: %w", name, err, backend.ErrUnavailable)
		case err != nil:
			return nil, fmt.Errorf("opening %s: %w", name, err)
		default:
			return os.NewFile(uintptr(fd), name), nil
		}
	}
}
