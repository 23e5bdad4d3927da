package exampletest

import (
	"crypto/x509"
	"encoding/pem"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Certificate reads a PEM file, has openssl verify it against the server's CA, and holds it to key.
func (s *Server) Certificate(t *testing.T, name, key string) *x509.Certificate {
	t.Helper()
	openssl := Need(t, "openssl", "openssl")
	dir := filepath.Dir(name)
	Run(t, nil, dir, openssl, "verify", "-x509_strict", "-CAfile", filepath.Join(s.Dir, "ca.pem"), name)
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := Run(t, nil, dir, openssl, "x509", "-in", name, "-noout", "-pubkey"), Run(t, nil, dir, openssl, "pkey", "-in", key, "-pubout"); got != want {
		t.Error("the certificate is for another key")
	}
	return cert
}

func differ(t *testing.T, first, second *x509.Certificate) {
	t.Helper()
	if first.SerialNumber.Cmp(second.SerialNumber) == 0 {
		t.Error("the renewed certificate has the serial number of the first")
	}
}

// StrongSwan enrols and renews with strongSwan's pki.
func (s *Server) StrongSwan(t *testing.T) {
	t.Helper()
	pki := Need(t, "pki", "strongswan-pki")
	dir := t.TempDir()
	Run(t, nil, dir, pki, "--scepca", "--url", s.Printed["URL"], "--caout", "ca.pem", "--raout", "ra.pem", "--outform", "pem")
	enroll := func(name string, more ...string) *x509.Certificate {
		Write(t, dir, name+".key", Run(t, nil, dir, pki, "--gen", "--type", "rsa", "--size", "2048", "--outform", "pem"))
		args := []string{"--scep", "--url", s.Printed["URL"], "--in", name + ".key", "--dn", "C=CH, O=scepkit, CN=device", "--san", "device.example.org",
			"--cacert-enc", "ra.pem", "--cacert-sig", "ra.pem", "--cacert", "ca.pem", "--outform", "pem", "--interval", "1"}
		Write(t, dir, name+".pem", Run(t, nil, dir, pki, append(args, more...)...))
		return s.Certificate(t, filepath.Join(dir, name+".pem"), name+".key")
	}
	first := enroll("first", "--password", s.Printed["challenge"])
	differ(t, first, enroll("second", "--cert", "first.pem", "--key", "first.key"))
}

// Scepclient enrols and renews with Debian's scep package; the server needs -legacy for it.
func (s *Server) Scepclient(t *testing.T) {
	t.Helper()
	client := Need(t, "scepclient", "scep")
	dir := t.TempDir()
	enroll := func() *x509.Certificate {
		Run(t, nil, dir, client, "-server-url", s.Printed["URL"], "-challenge", s.Printed["challenge"], "-cn", "device", "-private-key", "device.key", "-certificate", "device.pem")
		return s.Certificate(t, filepath.Join(dir, "device.pem"), "device.key")
	}
	first := enroll()
	differ(t, first, enroll())
}

// BuildEnroll builds examples/enroll.
func BuildEnroll(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "enroll")
	Run(t, nil, ".", "go", "build", "-o", name, "github.com/scepkit/scepkit/examples/enroll")
	return name
}

// Enroll enrols and renews with examples/enroll.
func (s *Server) Enroll(t *testing.T, program string) {
	t.Helper()
	dir := t.TempDir()
	run := func(name string, args ...string) *x509.Certificate {
		Run(t, []string{"SCEP_CHALLENGE=" + s.Printed["challenge"]}, dir, program,
			append(args, "-url", s.Printed["URL"], "-fingerprint", s.Printed["fingerprint"], "-out", name)...)
		return s.Certificate(t, filepath.Join(dir, name+".pem"), name+".key")
	}
	first := run("first", "enroll", "-cn", "device")
	differ(t, first, run("second", "renew", "-cert", "first.pem", "-key", "first.key"))
}

// Ready waits until the server's page on its state has the status wanted, and returns the page.
func (s *Server) Ready(t *testing.T, want int) string {
	t.Helper()
	var status int
	var page string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		res, err := http.Get(s.Printed["state"])
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		if status, page = res.StatusCode, string(text); status == want {
			return strings.TrimSpace(page)
		}
	}
	t.Fatalf("/readyz is %d, not %d: %s", status, want, page)
	return ""
}
