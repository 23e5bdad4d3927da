//go:build unix

package backend

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A pipe is read like a file, and one that nobody writes to is left.
func TestReadPINPipe(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ReadPIN(ctx, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody writes: %v", err)
	}
	// To end what was left behind.
	if f, err := os.OpenFile(name, os.O_RDWR, 0); err == nil {
		f.Close()
	}

	name = filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	go os.WriteFile(name, []byte("1234\n"), 0o600)
	pin, err := ReadPIN(t.Context(), name)
	if err != nil || pin.Reveal() != "1234" {
		t.Errorf("%q, %v", pin.Reveal(), err)
	}
}
