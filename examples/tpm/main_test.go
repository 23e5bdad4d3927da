package main

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/scepkit/scepkit/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

func start(t *testing.T, m *exampletest.TPM, dir string, args ...string) *exampletest.Server {
	t.Helper()
	return exampletest.Start(t, nil, dir, nil, append([]string{"-device", "unix:" + m.Socket}, args...)...)
}

// TestClients enrols and renews with clients of other projects, and ours, over keys in a TPM.
func TestClients(t *testing.T) {
	enroll := exampletest.BuildEnroll(t)
	for _, tt := range []struct {
		name string
		args []string
	}{
		{"rsa2048", nil},
		{"p256", []string{"-ca-key", "p256"}},
		{"RA in a file", []string{"-ra", "file"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := start(t, exampletest.NewTPM(t), filepath.Join(t.TempDir(), "data"), append(tt.args, "-legacy", "-renew-always")...)
			t.Run("pki", s.StrongSwan)
			if tt.name != "p256" { // scepclient encrypts to the CA as well, and cannot do without RSA
				t.Run("scepclient", s.Scepclient)
			}
			t.Run("enroll", func(t *testing.T) { s.Enroll(t, enroll) })
			s.Ready(t, 200)

			files := []string{"ca.tpm", "ra-1.tpm"}
			if tt.name == "RA in a file" {
				files = []string{"ca.tpm", "ra-1.key"}
			}
			for _, name := range files {
				text, err := os.ReadFile(filepath.Join(s.Dir, name))
				if err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(name, ".tpm") && !strings.Contains(string(text), "BEGIN TSS2 PRIVATE KEY") {
					t.Errorf("%s is no key of a TPM", name)
				}
				if info, err := os.Stat(filepath.Join(s.Dir, name)); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v; want mode 0600", name, info.Mode(), err)
				}
			}
			if !strings.Contains(s.Printed["CA key"], "fixedTPM") {
				t.Errorf("CA key: %s", s.Printed["CA key"])
			}
		})
	}
}

// TestSecondRun starts the server again, also after kill -9 and with the TPM restarted.
func TestSecondRun(t *testing.T) {
	m := exampletest.NewTPM(t)
	dir := filepath.Join(t.TempDir(), "data")
	first := start(t, m, dir, "-renew-always")
	for range 3 {
		first.Stop(os.Kill)
		// What was loaded stays in a TPM that is not behind a resource manager, as /dev/tpmrm0 is.
		m.Stop()
		m.Start()
		s := start(t, m, dir, "-renew-always")
		if s.Printed["fingerprint"] != first.Printed["fingerprint"] || s.Printed["challenge"] != first.Printed["challenge"] {
			t.Fatalf("another CA or challenge: %v, then %v", first.Printed, s.Printed)
		}
		s.Ready(t, 200)
		first = s
	}
	first.StrongSwan(t)

	m.Stop()
	if page := first.Ready(t, 503); !strings.Contains(page, "unavailable") {
		t.Errorf("/readyz: %s", page)
	}
	m.Start()
	first.Ready(t, 200)
	first.StrongSwan(t)
	if err := first.Stop(os.Interrupt); err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

// TestCannotStart has what must be refused, with a text that says what to do.
func TestCannotStart(t *testing.T) {
	m := exampletest.NewTPM(t)
	owned := start(t, m, filepath.Join(t.TempDir(), "data"))
	owned.Stop(os.Interrupt)
	if err := os.Remove(filepath.Join(owned.Dir, "ca.tpm")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, device, dir string
		args              []string
		want              string
	}{
		{"no device", filepath.Join(t.TempDir(), "tpmrm0"), "", nil, "there is no device"},
		{"no socket", "unix:" + filepath.Join(t.TempDir(), "sock"), "", nil, "sock"},
		{"kind of key", "unix:" + m.Socket, "", []string{"-ca-key", "rsa4096"}, "use rsa2048"},
		{"place of RA", "unix:" + m.Socket, "", []string{"-ra", "token"}, "use tpm or file"},
		{"key lost", "unix:" + m.Socket, owned.Dir, nil, "there was a key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := tt.dir
			if dir == "" {
				dir = filepath.Join(t.TempDir(), "data")
			}
			cmd := exampletest.Command(nil, append([]string{"-addr", "127.0.0.1:0", "-dir", dir, "-device", tt.device}, tt.args...)...)
			if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v; printed\n%s\nwant %q in it", err, out, tt.want)
			}
		})
	}
}
