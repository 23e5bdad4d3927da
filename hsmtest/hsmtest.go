// Package hsmtest starts key hardware in a test's temporary folder: a SoftHSM token, an
// interposer that makes a token fail on command, a token behind a socket, an NSS token, a TPM.
// All of it is software, needs no root and no network port, and ends with the test.
//
// The variable HSMTEST says what becomes of a test whose tools are not installed:
//
//	require   it fails; the default where CI is "true"
//	skip      it is skipped, naming the Debian package; the default elsewhere
//	off       it is skipped even where the tools are there
//
// SoftHSM, Fault, Remote and NSS need Unix, and so does TPM; elsewhere their tests are skipped.
// The package needs no cgo: it never loads a module into the process, it says which to load.
package hsmtest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// policy ends the test where HSMTEST is off or unknown, and where the system is not Unix.
func policy(t testing.TB) {
	t.Helper()
	switch mode := os.Getenv("HSMTEST"); mode {
	case "", "require", "skip":
	case "off":
		t.Skip("hsmtest: HSMTEST is off")
	default:
		t.Fatalf("hsmtest: HSMTEST is %q, want require, skip or off", mode)
	}
	if !unix {
		t.Skip("hsmtest: the devices run on Unix only")
	}
}

// missing ends the test for want of tool, which the Debian package holds.
func missing(t testing.TB, tool, debian string) {
	t.Helper()
	mode := os.Getenv("HSMTEST")
	if mode == "require" || mode == "" && os.Getenv("CI") == "true" {
		t.Fatalf("hsmtest: %s is required and not installed (Debian package %s)", tool, debian)
	}
	t.Skipf("hsmtest: %s is not installed (Debian package %s)", tool, debian)
}

// program finds a command. Some live beside the daemons of their package, outside the path.
func program(t testing.TB, name, debian string, elsewhere ...string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	return library(t, name, debian, elsewhere...)
}

// library finds the first file that matches one of the patterns.
func library(t testing.TB, name, debian string, patterns ...string) string {
	t.Helper()
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[0]
		}
	}
	missing(t, name, debian)
	return ""
}

// run runs a command to its end and returns what it wrote. A failure is the test's.
func run(t testing.TB, env []string, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("hsmtest: %s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out)
}

// copyFile copies a library, so that loading the copy gives a state of its own.
func copyFile(t testing.TB, from, dir string) string {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	return write(t, filepath.Join(dir, filepath.Base(from)), data, 0o755)
}

func write(t testing.TB, path string, data []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	return path
}

// shortDir makes a folder for sockets, whose paths may have no more than about 100 bytes.
func shortDir(t testing.TB) string {
	t.Helper()
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "hsm")
	if err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// A process is a daemon that ends with the test binary, where the system can see to that.
type process struct {
	cmd  *exec.Cmd
	log  bytes.Buffer  // complete once done is closed
	done chan struct{} // closed when it and all that hold its output have ended
}

// spawn starts cmd in a process group of its own.
func spawn(cmd *exec.Cmd) (*process, error) {
	isolate(cmd)
	p := &process{cmd: cmd, done: make(chan struct{})}
	// A pipe, not a file: Wait then returns only when the children have ended too.
	cmd.Stderr = struct{ io.Writer }{&p.log}
	if cmd.Stdout == nil {
		cmd.Stdout = cmd.Stderr
	}
	started := make(chan error)
	go superviseThread(func() {
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(p.done)
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("hsmtest: %w", err)
	}
	return p, nil
}

// kill ends the process and its children, and waits until they are gone.
func (p *process) kill() {
	select {
	case <-p.done: // its number may be another's by now
	default:
		killGroup(p.cmd)
		<-p.done
	}
}
