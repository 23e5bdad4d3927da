//go:build unix

package main

import (
	"bytes"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/scepkit/scepkit/examples/internal/exampletest"
)

// TestPINFromStdin has no terminal, so the PIN is read from the standard input, once for two keys.
func TestPINFromStdin(t *testing.T) {
	k := exampletest.SoftHSM(t)
	s := &stage{t: t, dir: t.TempDir(), env: k.Env, secret: k.PIN}
	uri := func(object string) string { return "pkcs11:token=ca;object=" + object + "?module-path=" + k.Module }
	run := func(exit int, want, pin string, args ...string) {
		t.Helper()
		cmd := exampletest.Command(s.env, append(args, "-transcript", s.path("transcript"))...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // away from the terminal of who runs the tests
		cmd.Stdin = strings.NewReader(pin)
		s.finish(cmd, exit, want)
	}
	run(0, "where it can be seen", k.PIN+"\n", "create", "-key", uri("ca"))
	run(0, "CN=CA", k.PIN, "self-sign", "-key", uri("ca"), "-cn", "CA")
	run(0, "new certificate", k.PIN+"\r\n", "ra", "-ca", uri("ca"), "-key", uri("ra-{n}"))
	run(1, "none was typed", "\n", "check", "-key", uri("ca"))
	run(1, "EOF", "", "check", "-key", uri("ca"))
	run(1, "refused the PIN", "0000\n", "check", "-key", uri("ca"))
}

// TestPINAtTerminal types the PIN at a terminal, which does not show it and shows what comes later.
func TestPINAtTerminal(t *testing.T) {
	script := exampletest.Need(t, "script", "bsdutils")
	k := exampletest.SoftHSM(t)
	program := exampletest.Command(k.Env)
	cmd := exec.Command(script, "-qec", program.Path+" create -key 'pkcs11:token=ca;object=ca?module-path="+k.Module+"'; stty -a", "/dev/null")
	cmd.Env, cmd.Dir = program.Env, t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out shared
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(out.String(), "PIN of token"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			cmd.Process.Kill()
			t.Fatalf("the PIN is not asked for:\n%s", out.String())
		}
	}
	if _, err := stdin.Write([]byte(k.PIN + "\n")); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	err = cmd.Wait()
	if text := out.String(); err != nil || !strings.Contains(text, "CKA_EXTRACTABLE") || strings.Contains(text, k.PIN) || !strings.Contains(text, " echo ") {
		t.Errorf("%v; the terminal showed\n%s", err, text)
	}
}

// shared is a buffer for two goroutines.
type shared struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *shared) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *shared) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
