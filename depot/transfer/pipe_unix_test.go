//go:build unix

package transfer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestMicroMDMPipe has a pipe where a certificate should be, to which nobody will ever write.
func TestMicroMDMPipe(t *testing.T) {
	ca := sceptest.NewCA(t)
	f := newFolder(t, ca)
	f.issue(t, "pipe", "V", "", 1) // 2
	f.issue(t, "file", "V", "", 1)
	pipe := filepath.Join(f.dir, "pipe.2.pem")
	if err := errors.Join(os.Remove(pipe), syscall.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	p := problems{}
	n, _, err := transfer.ImportMicroMDM(t.Context(), f.dir, open(t), p.options(ca), nil)
	if n != 1 || !errors.Is(err, transfer.ErrIncomplete) || len(p) != 1 || !strings.Contains(p["pipe.2.pem"], "is not a file") {
		t.Errorf("%d, %v, %v", n, err, p)
	}
}
