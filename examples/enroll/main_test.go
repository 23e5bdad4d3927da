package main

import (
	"crypto/x509"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// A shell runs the program in a folder of its own, against a server.
type shell struct {
	t      *testing.T
	server *sceptest.Server
	dir    string
	stderr strings.Builder
}

func newShell(t *testing.T, c scep.Config) *shell {
	t.Helper()
	if c.CA == nil {
		c.CA = sceptest.NewCA(t)
	}
	return &shell{t: t, server: sceptest.NewServer(t, c), dir: t.TempDir()}
}

func (s *shell) path(name string) string { return filepath.Join(s.dir, name) }

// run adds -url and -fingerprint, and returns what was printed on standard output.
func (s *shell) run(command string, args ...string) (string, error) {
	s.t.Helper()
	s.stderr.Reset()
	var stdout strings.Builder
	all := []string{command}
	if command != "poll" {
		all = append(all, "-url", s.server.URL)
	}
	if command == "enroll" || command == "renew" {
		all = append(all, "-fingerprint", scepclient.Fingerprint(s.server.Config.CA.(*scep.Identity).Certificate()))
	}
	err := run(s.t.Context(), append(all, args...), &stdout, &s.stderr)
	return stdout.String(), err
}

func (s *shell) must(command string, args ...string) string {
	s.t.Helper()
	out, err := s.run(command, args...)
	if err != nil {
		s.t.Fatalf("enroll %s: %v\n%s", command, err, &s.stderr)
	}
	return out
}

// pair reads NAME.key and NAME.pem, which must belong together and have the right modes.
func (s *shell) pair(name string) *x509.Certificate {
	s.t.Helper()
	certs, err := readCertificates(s.path(name + ".pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := readKey(s.path(name + ".key"))
	if err != nil {
		s.t.Fatal(err)
	}
	if !key.PublicKey.Equal(certs[0].PublicKey) {
		s.t.Errorf("%s.key does not belong to %s.pem", name, name)
	}
	for file, mode := range map[string]os.FileMode{name + ".key": 0o600, name + ".pem": 0o644} {
		if info, err := os.Stat(s.path(file)); err != nil || info.Mode().Perm() != mode {
			s.t.Errorf("%s: %v, %v; want mode %v", file, info.Mode(), err, mode)
		}
	}
	return certs[0]
}

func TestEnrollAndRenew(t *testing.T) {
	s := newShell(t, scep.Config{Renewal: scep.Renewal{On: true, Anytime: true}})
	if err := os.WriteFile(s.path("challenge"), []byte(sceptest.Secret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := s.must("enroll", "-challenge-file", s.path("challenge"), "-cn", "device-1", "-dns", "a.example", "-dns", "b.example",
		"-ip", "192.0.2.1", "-uri", "urn:x:y", "-email", "joe@example.org", "-out", s.path("one"))
	first := s.pair("one")
	if first.Subject.CommonName != "device-1" || len(first.DNSNames) != 2 || len(first.IPAddresses) != 1 || len(first.URIs) != 1 || len(first.EmailAddresses) != 1 {
		t.Errorf("certificate for %v, %v, %v, %v, %v", first.Subject, first.DNSNames, first.IPAddresses, first.URIs, first.EmailAddresses)
	}
	if !strings.Contains(out, "one.pem: CN=device-1") {
		t.Errorf("printed %q", out)
	}

	// It does not write over what is there.
	before, _ := os.ReadFile(s.path("one.key"))
	if _, err := s.run("enroll", "-challenge", sceptest.Secret, "-cn", "device-1", "-out", s.path("one")); err == nil || !strings.Contains(err.Error(), "-force") {
		t.Errorf("enrolling over a certificate: %v", err)
	}
	if after, _ := os.ReadFile(s.path("one.key")); string(after) != string(before) {
		t.Error("the key has changed")
	}

	s.must("renew", "-cert", s.path("one.pem"), "-key", s.path("one.key"), "-out", s.path("two"))
	second := s.pair("two")
	if second.Subject.CommonName != "device-1" || second.SerialNumber.Cmp(first.SerialNumber) == 0 || len(second.DNSNames) != 2 {
		t.Errorf("renewed certificate for %v, %v, serial number %v", second.Subject, second.DNSNames, second.SerialNumber)
	}

	s.must("renew", "-cert", s.path("two.pem"), "-key", s.path("two.key"), "-out", s.path("one"), "-force")
	if third := s.pair("one"); third.Equal(first) {
		t.Error("-force left the old certificate")
	}
	if kept, _ := os.ReadFile(s.path("one.key.old")); string(kept) != string(before) {
		t.Error("-force did not keep the old key")
	}
}

func TestPending(t *testing.T) {
	s := newShell(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret)})
	_, err := s.run("enroll", "-challenge", sceptest.Secret, "-cn", "device-1", "-out", s.path("one"), "-retries", "-1")
	if !errors.Is(err, errPending) || !strings.Contains(s.stderr.String(), "enroll poll -out "+s.path("one")) {
		t.Fatalf("%v: %s", err, &s.stderr)
	}
	if info, err := os.Stat(s.path("one.pending")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("one.pending: %v, %v", info.Mode(), err)
	}
	if _, err := s.run("poll", "-out", s.path("one"), "-retries", "2", "-retry-delay", "1ms"); !errors.Is(err, errPending) {
		t.Fatalf("polling before approval: %v", err)
	}
	if !strings.Contains(s.stderr.String(), "poll 2 of 2") {
		t.Errorf("no progress in %q", &s.stderr)
	}
	waiting, err := s.server.Config.Depot.(scep.Lister).List(t.Context(), scep.Query{State: scep.Pending})
	if err != nil || len(waiting) != 1 {
		t.Fatalf("%d requests wait, %v", len(waiting), err)
	}
	if _, err := s.server.Handler.Approve(t.Context(), waiting[0].ID, scep.Decision{}); err != nil {
		t.Fatal(err)
	}
	s.must("poll", "-out", s.path("one"))
	s.pair("one")
	if _, err := os.Stat(s.path("one.pending")); err == nil {
		t.Error("one.pending is still there")
	}
	if _, err := s.run("poll", "-out", s.path("one")); err == nil || !strings.Contains(err.Error(), "no request of that name waits") {
		t.Errorf("polling for nothing: %v", err)
	}
}

// TestAgain enrols after an answer was lost: the key is there, the certificate is not.
func TestAgain(t *testing.T) {
	s := newShell(t, scep.Config{})
	args := []string{"-challenge", sceptest.Secret, "-cn", "device-1", "-out", s.path("one")}
	s.must("enroll", args...)
	first := s.pair("one")
	if err := os.Remove(s.path("one.pem")); err != nil {
		t.Fatal(err)
	}
	s.must("enroll", args...)
	if again := s.pair("one"); !again.Equal(first) {
		t.Error("another certificate was issued")
	}
	if !strings.Contains(s.stderr.String(), "Using "+s.path("one.key")) {
		t.Errorf("said %q", &s.stderr)
	}
}

func TestRefusals(t *testing.T) {
	s := newShell(t, scep.Config{})
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"wrong challenge", []string{"enroll", "-challenge", "planted-wrong", "-cn", "x", "-out", s.path("a")}, "the challenge password is wrong"},
		{"no challenge", []string{"enroll", "-cn", "x", "-out", s.path("b")}, "the challenge password is wrong"},
		{"wrong fingerprint", []string{"enroll", "-fingerprint", strings.Repeat("00", 32), "-challenge", sceptest.Secret, "-cn", "x", "-out", s.path("c")}, "fingerprint"},
		{"no name", []string{"enroll", "-challenge", "x", "-out", s.path("d")}, "needs a name"},
		{"no key", []string{"renew", "-cert", s.path("none.pem"), "-key", s.path("none.key"), "-out", s.path("e")}, "none.pem"},
		{"no IP", []string{"enroll", "-ip", "1.2.3", "-cn", "x", "-out", s.path("f")}, "1.2.3"},
		{"kind of key", []string{"enroll", "-key-type", "dsa", "-cn", "x", "-out", s.path("g")}, "rsa2048"},
	} {
		_, err := s.run(tt.args[0], tt.args[1:]...)
		if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "planted") {
			t.Errorf("%s: %v; want %q", tt.name, err, tt.want)
		}
	}
	for _, args := range [][]string{{}, {"serve"}, {"enroll"}, {"enroll", "-nonsense"}, {"caps"}, {"renew", "-url", "x"}, {"caps", "-url", "x", "more"}} {
		if err := run(t.Context(), args, &s.stderr, &s.stderr); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{"enroll", "-h"}, &s.stderr, &s.stderr); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: %v", err)
	}
}

func TestShow(t *testing.T) {
	s := newShell(t, scep.Config{})
	if out := s.must("caps"); !strings.Contains(out, "SCEPStandard\n") || !strings.Contains(s.stderr.String(), "AES-128-CBC") {
		t.Errorf("caps: %q, %q", out, &s.stderr)
	}
	out := s.must("cacert")
	if !strings.Contains(out, scepclient.Fingerprint(s.server.Config.CA.(*scep.Identity).Certificate())) || !strings.Contains(s.stderr.String(), "compare") {
		t.Errorf("cacert: %q, %q", out, &s.stderr)
	}
}
