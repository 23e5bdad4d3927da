package main

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// start starts the server with the token.
func start(t *testing.T, k *exampletest.Token, dir string, args ...string) *exampletest.Server {
	t.Helper()
	return exampletest.Start(t, k.Env, dir, []string{k.PIN}, append([]string{"-module", k.Module, "-pin", k.PINFile}, args...)...)
}

// refused starts the program, which must not run, and returns what it printed.
func refused(t *testing.T, k *exampletest.Token, dir string, args ...string) string {
	t.Helper()
	cmd := exampletest.Command(k.Env, append([]string{"-addr", "127.0.0.1:0", "-dir", dir, "-module", k.Module, "-pin", k.PINFile}, args...)...)
	out, err := cmd.CombinedOutput()
	if err == nil || cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1; printed\n%s", err, out)
	}
	if strings.Contains(string(out), k.PIN) {
		t.Errorf("the PIN was printed:\n%s", out)
	}
	return string(out)
}

// TestClients enrols and renews with clients of other projects, and ours, over keys in a token.
func TestClients(t *testing.T) {
	enroll := exampletest.BuildEnroll(t)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"rsa2048", nil},
		{"p256", []string{"-ca-key", "p256"}},
		{"RA in a file", []string{"-ra", "file"}},
		{"held back", []string{"-hold", "100ms"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			k := exampletest.SoftHSM(t)
			s := start(t, k, filepath.Join(t.TempDir(), "data"), append(tt.args, "-legacy", "-renew-always")...)
			t.Run("pki", s.StrongSwan)
			if tt.name == "held back" { // pki polls
				return
			}
			if tt.name != "p256" { // scepclient encrypts to the CA as well, and cannot do without RSA
				t.Run("scepclient", s.Scepclient)
			}
			t.Run("enroll", func(t *testing.T) { s.Enroll(t, enroll) })
			s.Ready(t, 200)

			keys := exampletest.Run(t, k.Env, ".", exampletest.Need(t, "pkcs11-tool", "opensc"),
				"--module", k.Module, "--token-label", "ca", "--login", "--pin", k.PIN, "--list-objects", "--type", "privkey")
			want := 2
			if tt.name == "RA in a file" {
				want = 1
				if info, err := os.Stat(filepath.Join(s.Dir, "ra-1.key")); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("the RA's key: %v, %v", info, err)
				}
			}
			if n := strings.Count(keys, "Access:     sensitive, always sensitive, never extractable, local"); n != want || strings.Count(keys, "label:") != want {
				t.Errorf("%d keys cannot be taken out of the token, want %d:\n%s", n, want, keys)
			}
			for _, file := range []string{"ca.key", "scep-ca.key"} {
				if _, err := os.Stat(filepath.Join(s.Dir, file)); err == nil {
					t.Errorf("there is a %s in the folder", file)
				}
			}
		})
	}
}

// TestSecondRun starts the server again, also after kill -9: it is the same CA and the same RA.
func TestSecondRun(t *testing.T) {
	k := exampletest.SoftHSM(t)
	dir := filepath.Join(t.TempDir(), "data")
	first := start(t, k, dir)
	if err := first.Stop(os.Kill); err == nil {
		t.Error("kill -9 ended the server in peace")
	}
	if err := os.Remove(filepath.Join(dir, "ca.pem")); err != nil { // as if it had ended before that was written
		t.Fatal(err)
	}
	second := start(t, k, dir, "-ca-key", "p256") // which is for a CA that is made
	if err := second.Stop(os.Interrupt); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	for _, name := range []string{"fingerprint", "challenge", "CA key", "RA key"} {
		if first.Printed[name] == "" || first.Printed[name] != second.Printed[name] {
			t.Errorf("%s was %q and is %q", name, first.Printed[name], second.Printed[name])
		}
	}
	if runtime.GOOS != "windows" {
		for name, mode := range map[string]os.FileMode{"ca.pem": 0o644, "challenge": 0o600, "scep.db": 0o600} {
			if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v; want mode %v", name, err, mode)
			}
		}
	}
	// Another folder is another server with the same CA; the folder with another token is not.
	third := start(t, k, filepath.Join(t.TempDir(), "other"))
	if third.Printed["fingerprint"] != first.Printed["fingerprint"] {
		t.Error("another folder, another CA")
	}
	if out := refused(t, exampletest.SoftHSM(t), dir); !strings.Contains(out, "there was a key") {
		t.Errorf("another token: %s", out)
	}
}

// TestInterrupted kills the first run at many moments; there is one CA in the end, and it works.
// SoftHSM itself is not made for that: it writes its files in place, that of the token at each
// login. What it loses is given back here.
func TestInterrupted(t *testing.T) {
	k := exampletest.SoftHSM(t)
	tool := exampletest.Need(t, "pkcs11-tool", "opensc")
	dir := filepath.Join(t.TempDir(), "data")
	files, err := filepath.Glob(filepath.Join(k.Dir, "*", "token.object"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	good, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	labels := regexp.MustCompile(`(?m)^  label:      (scep-[a-z0-9-]+)$`)
	list := func(kind string) string {
		return exampletest.Run(t, k.Env, ".", tool, "--module", k.Module, "--token-label", "ca", "--login", "--pin", k.PIN, "--list-objects", "--type", kind)
	}
	for i := range 40 {
		cmd := exampletest.Command(k.Env, "-addr", "127.0.0.1:0", "-dir", dir, "-module", k.Module, "-pin", k.PINFile)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(i*i) * time.Millisecond / 4)
		cmd.Process.Kill()
		cmd.Wait()
		if info, err := os.Stat(files[0]); err != nil || info.Size() < int64(len(good)) {
			if err := os.WriteFile(files[0], good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// And half a pair is removed as the program says.
	private := list("privkey")
	for _, m := range labels.FindAllStringSubmatch(list("pubkey"), -1) {
		if !strings.Contains(private, "label:      "+m[1]+"\n") {
			exampletest.Run(t, k.Env, ".", tool, "--module", k.Module, "--token-label", "ca", "--login", "--pin", k.PIN,
				"--delete-object", "--type", "pubkey", "--label", m[1])
		}
	}
	s := start(t, k, dir, "-renew-always")
	s.Ready(t, 200)
	s.StrongSwan(t)
	certs := exampletest.Run(t, k.Env, ".", tool, "--module", k.Module, "--token-label", "ca", "--list-objects", "--type", "cert")
	if n := strings.Count(certs, "label:      scep-ca\n"); n != 1 {
		t.Errorf("%d certificates of the CA:\n%s", n, certs)
	}
}

// TestAway takes the token away and brings it back while the server runs.
func TestAway(t *testing.T) {
	k := exampletest.SoftHSM(t)
	s := start(t, k, filepath.Join(t.TempDir(), "data"), "-renew-always")
	if page := s.Ready(t, 200); page != "ready" {
		t.Errorf("/readyz: %s", page)
	}
	if err := os.Rename(k.Dir, k.Dir+".away"); err != nil {
		t.Fatal(err)
	}
	if page := s.Ready(t, 503); !strings.Contains(page, "unavailable") || strings.Contains(page, k.PIN) {
		t.Errorf("/readyz: %s", page)
	}
	if err := os.Rename(k.Dir+".away", k.Dir); err != nil {
		t.Fatal(err)
	}
	s.Ready(t, 200)
	s.StrongSwan(t)
}

// TestWrongPIN has the PIN sent to the token once.
func TestWrongPIN(t *testing.T) {
	k := exampletest.SoftHSM(t)
	dir := t.TempDir()
	env := k.Env
	log := filepath.Join(dir, "spy.log")
	for _, spy := range []string{"/usr/lib/x86_64-linux-gnu/pkcs11-spy.so", "/usr/lib/aarch64-linux-gnu/pkcs11-spy.so", "/usr/lib/pkcs11-spy.so"} {
		if _, err := os.Stat(spy); err == nil { // of Debian's opensc-pkcs11: it writes all calls down
			k.Env = append(env, "PKCS11SPY="+k.Module, "PKCS11SPY_OUTPUT="+log)
			k.Module = spy
			break
		}
	}
	k.PINFile = exampletest.Write(t, dir, "pin", "73190285\n")
	if out := refused(t, k, filepath.Join(dir, "data")); !strings.Contains(out, "refused the PIN") {
		t.Errorf("printed\n%s", out)
	} else if strings.Contains(out, "73190285") {
		t.Errorf("the PIN was printed:\n%s", out)
	}
	if calls, err := os.ReadFile(log); err == nil && strings.Count(string(calls), "C_Login") != 1 {
		t.Errorf("the PIN was sent %d times", strings.Count(string(calls), "C_Login"))
	}
}

// TestCannotStart has what must be refused, with a text that says what to do.
func TestCannotStart(t *testing.T) {
	k := exampletest.SoftHSM(t)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"no token", []string{"-token", "other"}, `token "other" not found`},
		{"no module", []string{"-module", "/nonexistent/module.so"}, "there is no module"},
		{"no PIN file", []string{"-pin", "nonexistent"}, "nonexistent"},
		{"no PIN variable", []string{"-pin", "env:SCEPKIT_NO_PIN"}, "SCEPKIT_NO_PIN"},
		{"place of RA", []string{"-ra", "cloud"}, "use token or file"},
		{"kind of key", []string{"-ca-key", "dsa"}, "use rsa2048"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out := refused(t, k, filepath.Join(t.TempDir(), "data"), tt.args...); !strings.Contains(out, tt.want) {
				t.Errorf("printed\n%s\nwant %q in it", out, tt.want)
			}
		})
	}
	t.Run("PIN in the folder, for others to read", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Chmod(exampletest.Write(t, dir, "pin", k.PIN), 0o644); err != nil {
			t.Fatal(err)
		}
		if out := refused(t, k, dir, "-pin", ""); !strings.Contains(out, "chmod 600") {
			t.Errorf("printed\n%s", out)
		}
	})
	t.Run("PIN in the environment", func(t *testing.T) {
		k := *k
		k.Env = append(k.Env, "SCEPKIT_PIN="+k.PIN)
		start(t, &k, filepath.Join(t.TempDir(), "data"), "-pin", "env:SCEPKIT_PIN")
	})
}
