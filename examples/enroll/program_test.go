package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestMain lets the test binary be the program, so that tests run it as people do.
func TestMain(m *testing.M) {
	if os.Getenv("ENROLL") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// program prepares the program with the challenge in its environment.
func (s *shell) program(challenge string, args ...string) (cmd *exec.Cmd, output *bytes.Buffer) {
	cmd = exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "ENROLL=1", "SCEP_CHALLENGE="+challenge)
	cmd.Dir = s.dir
	output = new(bytes.Buffer)
	cmd.Stdout, cmd.Stderr = output, output
	return cmd, output
}

func TestProgram(t *testing.T) {
	s := newShell(t, scep.Config{})
	pin := scepclient.Fingerprint(s.server.Config.CA.(*scep.Identity).Certificate())
	to := func(name string, more ...string) []string {
		return append([]string{"enroll", "-url", s.server.URL, "-fingerprint", pin, "-cn", "device-1", "-out", name}, more...)
	}
	for _, tt := range []struct {
		name      string
		args      []string
		challenge string
		exit      int
		want      string
	}{
		{"nothing", nil, "planted", 2, "usage: enroll COMMAND"},
		{"help", []string{"-h"}, "planted", 0, "usage: enroll COMMAND"},
		{"flags", []string{"enroll", "-h"}, "planted", 0, "better -challenge-file or SCEP_CHALLENGE"},
		{"unknown flag", []string{"enroll", "-nonsense"}, "planted", 2, "-nonsense"},
		{"no -out", []string{"enroll", "-url", s.server.URL}, "planted", 2, "-out is missing"},
		{"happy", to("one"), sceptest.Secret, 0, "one.pem: CN=device-1"},
		{"again", to("one"), sceptest.Secret, 1, "-force"},
		{"no CA", []string{"enroll", "-url", s.server.URL, "-cn", "x", "-out", "two"}, "planted", 2, "give its -fingerprint"},
		{"wrong challenge", to("three"), "planted", 1, "badRequest"},
		{"no server", []string{"caps", "-url", "http://127.0.0.1:1/"}, "planted", 1, "no answer to GetCACaps"},
		{"no folder", to("none/one"), "planted", 1, "none"},
	} {
		cmd, out := s.program(tt.challenge, tt.args...)
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != tt.exit || !strings.Contains(out.String(), tt.want) {
			t.Errorf("%s: exit status %d, want %d; printed\n%s", tt.name, code, tt.exit, out)
		}
		if strings.Contains(out.String(), "planted") {
			t.Errorf("%s: the challenge was printed:\n%s", tt.name, out)
		}
	}
	s.pair("one")
	if files, err := os.ReadDir(s.dir); err != nil || len(files) > 3 { // one.key, one.pem, three.key
		t.Errorf("files that are left: %v, %v", files, err)
	}
}

// TestInterrupted interrupts the program while it waits.
func TestInterrupted(t *testing.T) {
	s := newShell(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret)})
	pin := scepclient.Fingerprint(s.server.Config.CA.(*scep.Identity).Certificate())
	cmd, out := s.program(sceptest.Secret, "enroll", "-url", s.server.URL, "-fingerprint", pin, "-cn", "device-1", "-out", "one", "-retry-delay", "1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		if _, err := os.Stat(s.path("one.pending")); err == nil {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("%v: %s", err, out)
		case <-time.After(10 * time.Millisecond):
		}
	}
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-ended
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(out.String(), "enroll poll -out one") {
		t.Errorf("exit status %d, printed\n%s", code, out)
	}
	if _, err := s.run("enroll", "-challenge", sceptest.Secret, "-cn", "device-1", "-out", s.path("one")); err == nil || !strings.Contains(err.Error(), "enroll poll") {
		t.Errorf("enrolling beside a request that waits: %v", err)
	}
	text, err := os.ReadFile(s.path("one.pending"))
	if err != nil || bytes.Contains(text, []byte(sceptest.Secret)) {
		t.Errorf("one.pending has the challenge, or %v", err)
	}
	s.approve()
	s.must("poll", "-out", s.path("one"))
	s.pair("one")
}

// approve approves the only request that waits.
func (s *shell) approve() {
	s.t.Helper()
	waiting, err := s.server.Config.Depot.(scep.Lister).List(s.t.Context(), scep.Query{State: scep.Pending})
	if err != nil || len(waiting) != 1 {
		s.t.Fatalf("%d requests wait, %v", len(waiting), err)
	}
	if _, err := s.server.Handler.Approve(s.t.Context(), waiting[0].ID, scep.Decision{}); err != nil {
		s.t.Fatal(err)
	}
}

// TestReplace renews in place: the old pair stays until the new one is there.
func TestReplace(t *testing.T) {
	answer := error(nil)
	s := newShell(t, scep.Config{
		Renewal: scep.Renewal{On: true, Anytime: true, Challenge: true},
		Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
			return answer
		}),
	})
	s.must("enroll", "-cn", "device-1", "-out", s.path("one"))
	first := s.pair("one")
	renew := []string{"-cert", s.path("one.pem"), "-key", s.path("one.key"), "-out", s.path("one"), "-force", "-retries", "0"}

	answer = scep.Reject(scep.BadRequest, "not now")
	if _, err := s.run("renew", renew...); err == nil || !strings.Contains(err.Error(), "not now") {
		t.Fatal(err)
	}
	if !s.pair("one").Equal(first) {
		t.Error("a refusal replaced the certificate")
	}

	answer = scep.ErrPending
	if _, err := s.run("renew", renew...); !errors.Is(err, errPending) {
		t.Fatal(err)
	}
	if !s.pair("one").Equal(first) {
		t.Error("a request that waits replaced the certificate")
	}
	if _, err := s.run("poll", "-out", s.path("one"), "-retries", "0"); !errors.Is(err, errPending) {
		t.Fatal(err)
	}
	s.approve()
	s.must("poll", "-out", s.path("one"))
	second := s.pair("one")
	if second.Equal(first) || second.PublicKey.(interface{ Size() int }).Size() != 256 {
		t.Error("the certificate was not replaced")
	}
	for _, kind := range []string{".key", ".pem"} { // the old ones are kept, with their modes
		if err := os.Rename(s.path("one"+kind+".old"), s.path("old"+kind)); err != nil {
			t.Fatal(err)
		}
	}
	if !s.pair("old").Equal(first) {
		t.Error("another certificate than the old one was kept")
	}
	for _, name := range []string{"one.pending", "one.new.key", "one.new.pem"} {
		if _, err := os.Stat(s.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
}

// TestForeignKey enrols with a key from elsewhere.
func TestForeignKey(t *testing.T) {
	s := newShell(t, scep.Config{Challenge: sceptest.Pend(sceptest.Secret)})
	if err := (files{name: s.path("mine")}).writeKey(sceptest.RSA(0)); err != nil {
		t.Fatal(err)
	}
	_, err := s.run("enroll", "-challenge", sceptest.Secret, "-cn", "device-1", "-key", s.path("mine.key"), "-out", s.path("one"), "-retries", "0")
	if !errors.Is(err, errPending) {
		t.Fatal(err)
	}
	s.approve()
	s.must("poll", "-out", s.path("one"))
	if _, err := os.Stat(s.path("one.key")); err == nil {
		t.Error("a key was written")
	}
	certs, err := readCertificates(s.path("one.pem"))
	if err != nil || !sceptest.RSA(0).PublicKey.Equal(certs[0].PublicKey) {
		t.Errorf("certificate for another key, or %v", err)
	}
}
