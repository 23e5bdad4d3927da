package hsmtest

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const softhsmVar = "SOFTHSM2_CONF"

// SoftHSM makes a SoftHSM token of its own for the test, with a copy of the library of its own:
// two Tokens are two modules, as two devices are.
//
// The tokens of a process share one configuration, so each module lists the tokens of all
// tests that run; go by label or serial, never by slot.
func SoftHSM(t testing.TB) *Token {
	t.Helper()
	policy(t)
	util := program(t, "softhsm2-util", "softhsm2")
	lib := library(t, "libsofthsm2.so", "libsofthsm2", "/usr/lib/softhsm/libsofthsm2.so",
		"/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so",
		"/usr/local/lib/softhsm/libsofthsm2.so", "/opt/homebrew/lib/softhsm/libsofthsm2.so")

	shared := softhsmDir.acquire(t)
	dir := t.TempDir()
	k := &Token{
		Module: copyFile(t, lib, dir), Label: "hsmtest-" + strings.ToLower(rand.Text()[:16]),
		PIN: digits(12), SOPIN: digits(12), env: []string{softhsmVar + "=" + shared.conf()},
	}
	k.tool = k.Module
	k.pinFile = write(t, filepath.Join(dir, "pin"), []byte(k.PIN+"\n"), 0o600)

	// The token is made beside the others and moved in, so that no module sees half of one.
	private := softhsmFolder(filepath.Join(string(shared), k.Label))
	private.make(t)
	run(t, []string{softhsmVar + "=" + private.conf()}, util, "--init-token", "--free",
		"--label", k.Label, "--so-pin", k.SOPIN, "--pin", k.PIN)
	made, err := os.ReadDir(private.tokens())
	if err != nil || len(made) != 1 {
		t.Fatalf("hsmtest: softhsm2-util left %v (%v), want one token", made, err)
	}
	uuid := made[0].Name()
	k.Serial = uuid[19:23] + uuid[24:] // as SoftHSM derives it
	k.Dir = filepath.Join(shared.tokens(), uuid)
	k.move(t, filepath.Join(private.tokens(), uuid), k.Dir)
	return k
}

// digits returns n random digits: a PIN that appears nowhere by chance.
func digits(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = '0' + b[i]%10
	}
	return string(b)
}

// A softhsmFolder holds a configuration and its tokens.
type softhsmFolder string

func (f softhsmFolder) conf() string   { return filepath.Join(string(f), "softhsm2.conf") }
func (f softhsmFolder) tokens() string { return filepath.Join(string(f), "tokens") }

func (f softhsmFolder) make(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll(f.tokens(), 0o700); err != nil {
		t.Fatalf("hsmtest: %v", err)
	}
	write(t, f.conf(), fmt.Appendf(nil,
		"directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\n", f.tokens()), 0o600)
}

// softhsmDir is the one configuration of this process. SoftHSM reads the variable at every
// C_Initialize, which the code under test calls when it likes: it must be one for all tokens.
var softhsmDir sharedDir

type sharedDir struct {
	mu     sync.Mutex
	users  int
	folder softhsmFolder
	before func() // puts the variable back
}

// acquire returns the folder. It is removed when the last test that acquired it has ended: a
// token that vanished earlier could be one that another test is just listing.
func (s *sharedDir) acquire(t testing.TB) softhsmFolder {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		dir, err := os.MkdirTemp("", "hsmtest")
		if err != nil {
			t.Fatalf("hsmtest: %v", err)
		}
		s.folder = softhsmFolder(dir)
		s.folder.make(t)
		s.before = setenv(softhsmVar, s.folder.conf())
	}
	s.users++
	t.Cleanup(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.users--; s.users == 0 {
			s.before()
			os.RemoveAll(string(s.folder))
		}
	})
	return s.folder
}

// setenv sets a variable of the process and returns what undoes it.
func setenv(name, value string) (undo func()) {
	old, was := os.LookupEnv(name)
	os.Setenv(name, value)
	return func() {
		if was {
			os.Setenv(name, old)
		} else {
			os.Unsetenv(name)
		}
	}
}
