package main

import (
	"bufio"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// TestMain lets the test binary be the quickstart, so that tests run it as people do.
func TestMain(m *testing.M) {
	if os.Getenv("QUICKSTART") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// A server is a quickstart that runs.
type server struct {
	url, fingerprint, challenge, dir string
	stop                             func(os.Signal) error
}

var printed = regexp.MustCompile(`(?m)^  (URL|fingerprint|challenge|data) +(\S+)$`)

func start(t *testing.T, dir string, args ...string) *server {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"-addr", "127.0.0.1:0", "-dir", dir}, args...)...)
	cmd.Env = append(os.Environ(), "QUICKSTART=1")
	var log strings.Builder
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	var ended error
	s := &server{dir: dir}
	s.stop = func(sig os.Signal) error {
		once.Do(func() { cmd.Process.Signal(sig); ended = cmd.Wait() })
		return ended
	}
	t.Cleanup(func() {
		s.stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("log of the server:\n%s", &log)
		}
		if s.challenge != "" && strings.Contains(log.String(), s.challenge) {
			t.Error("the challenge is in the log")
		}
	})
	lines := bufio.NewScanner(stdout)
	for s.dir == dir && lines.Scan() {
		m := printed.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		switch m[1] {
		case "URL":
			s.url = m[2]
		case "fingerprint":
			s.fingerprint = m[2]
		case "challenge":
			s.challenge = m[2]
		case "data":
			go func() { // keep the pipe empty until the process ends
				for lines.Scan() {
				}
			}()
			return s
		}
	}
	s.stop(os.Kill)
	t.Fatalf("the server did not start:\n%s", &log)
	return nil
}

// run runs a program in dir and returns what it printed.
func command(t *testing.T, dir, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", name)
		}
		t.Skipf("%s is not installed", name)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, &stderr)
	}
	return string(out)
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate reads a PEM file, has openssl verify it, and holds it to key and names.
func certificate(t *testing.T, dir, name, ca, key, cn string, dns ...string) *x509.Certificate {
	t.Helper()
	command(t, dir, "openssl", "verify", "-x509_strict", "-CAfile", ca, name)
	content, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if cert.Subject.CommonName != cn || !slices.Equal(cert.DNSNames, dns) {
		t.Errorf("certificate for %q and %q, want %q and %q", cert.Subject, cert.DNSNames, cn, dns)
	}
	if got, want := command(t, dir, "openssl", "x509", "-in", name, "-noout", "-pubkey"),
		command(t, dir, "openssl", "pkey", "-in", key, "-pubout"); got != want {
		t.Error("the certificate is for another key")
	}
	return cert
}

// TestStrongSwan enrols and renews with strongSwan's pki, over each kind of CA.
func TestStrongSwan(t *testing.T) {
	for _, tt := range []struct {
		name       string
		server     []string
		enroll     []string // arguments of pki
		recipients string   // the file that it encrypts to, made by pki --scepca
	}{
		{"rsa2048", []string{"-renew-always"}, nil, "ca.pem"},
		{"rsa3072 memory", []string{"-renew-always", "-memory", "-ca-key", "rsa3072"}, []string{"--digest", "sha512"}, "ca.pem"},
		{"p256 with RA", []string{"-renew-always", "-ca-key", "p256"}, nil, "ra.pem"},
		{"ed25519 with RA", []string{"-renew-always", "-ca-key", "ed25519"}, nil, "ra.pem"},
		{"p384 with RA, held back", []string{"-renew-always", "-ca-key", "p384", "-hold", "1s"}, []string{"--interval", "1"}, "ra.pem"},
		{"pss", []string{"-renew-always"}, []string{"--rsa-padding", "pss"}, "ca.pem"},
		{"3des sha1", []string{"-renew-always", "-legacy"}, []string{"--cipher", "des3", "--digest", "sha1"}, "ca.pem"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := start(t, filepath.Join(dir, "data"), tt.server...)
			command(t, dir, "pki", "--scepca", "--url", s.url, "--caout", "ca.pem", "--raout", "ra.pem", "--outform", "pem")
			if got, want := strings.TrimSpace(command(t, dir, "openssl", "x509", "-in", "ca.pem", "-noout", "-pubkey")),
				strings.TrimSpace(command(t, s.dir, "openssl", "x509", "-in", "ca.pem", "-noout", "-pubkey")); got != want {
				t.Fatalf("pki took another certificate for the CA's:\n%s\n%s", got, want)
			}
			enroll := func(name string, more ...string) *x509.Certificate {
				write(t, dir, name+".key", command(t, dir, "pki", "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem"))
				args := []string{"--scep", "--url", s.url, "--in", name + ".key", "--dn", "C=CH, O=scepkit, CN=device", "--san", "device.example.org",
					"--cacert-enc", tt.recipients, "--cacert-sig", tt.recipients, "--cacert", "ca.pem", "--outform", "pem"}
				write(t, dir, name+".pem", command(t, dir, "pki", slices.Concat(args, tt.enroll, more)...))
				return certificate(t, dir, name+".pem", "ca.pem", name+".key", "device", "device.example.org")
			}
			first := enroll("first", "--password", s.challenge)
			second := enroll("second", "--cert", "first.pem", "--key", "first.key")
			if first.SerialNumber.Cmp(second.SerialNumber) == 0 {
				t.Error("the renewed certificate has the serial number of the first")
			}
		})
	}
}

// TestScepclient enrols with Debian's scep package, which knows single DES only.
func TestScepclient(t *testing.T) {
	dir := t.TempDir()
	s := start(t, filepath.Join(dir, "data"), "-legacy", "-renew-always")
	enroll := func(name string, key string) *x509.Certificate {
		command(t, dir, "scepclient", "-server-url", s.url, "-challenge", s.challenge, "-cn", "device",
			"-private-key", key, "-certificate", name)
		return certificate(t, dir, name, filepath.Join(s.dir, "ca.pem"), key, "device")
	}
	enroll("device.pem", "device.key")
}

// TestSecondRun starts the server again, also after kill -9: it is the same CA, and remembers.
func TestSecondRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	first := start(t, dir)
	if err := first.stop(os.Kill); err == nil {
		t.Error("kill -9 ended the server in peace")
	}
	second := start(t, dir)
	if err := second.stop(os.Interrupt); err != nil {
		t.Errorf("interrupted: %v", err)
	}
	third := start(t, dir, "-challenge", "another-one")
	if first.fingerprint != second.fingerprint || first.challenge != second.challenge || first.fingerprint != third.fingerprint {
		t.Errorf("another CA or challenge: %+v, %+v, %+v", first, second, third)
	}
	if third.challenge != "another-one" {
		t.Errorf("-challenge was not taken: %q", third.challenge)
	}
	for name, mode := range map[string]os.FileMode{"ca.key": 0o600, "challenge": 0o600, "scep.db": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v; want mode %v", name, info.Mode(), err, mode)
		}
	}
}

// TestCannotStart has what must be refused, with a text that says what to do.
func TestCannotStart(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		file map[string]string
		want string
	}{
		{"kind of key", []string{"-ca-key", "dsa"}, nil, "use rsa2048"},
		{"address", []string{"-addr", "127.0.0.1:99999"}, nil, "invalid port"},
		{"CA key is garbage", nil, map[string]string{"ca.pem": "x", "ca.key": "x"}, "ca.key"},
		{"empty challenge", nil, map[string]string{"challenge": "\n"}, "remove it"},
		{"depot is no database", nil, map[string]string{"scep.db": strings.Repeat("no database ", 100)}, "scep.db"},
		{"argument", []string{"serve"}, nil, `no "serve"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for name, content := range tt.file {
				write(t, dir, name, content)
			}
			cmd := exec.Command(os.Args[0], append([]string{"-addr", "127.0.0.1:0", "-dir", dir}, tt.args...)...)
			cmd.Env = append(os.Environ(), "QUICKSTART=1")
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s; want an error with %q", err, out, tt.want)
			}
		})
	}
}
