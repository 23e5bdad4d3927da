package main

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// A stage is where a ceremony is held.
type stage struct {
	t      *testing.T
	env    []string
	dir    string
	secret string // that must not be printed or written down
}

func (s *stage) path(name string) string { return filepath.Join(s.dir, name) }

// run runs a command, which must end with the exit status and print want.
func (s *stage) run(exit int, want string, args ...string) string {
	s.t.Helper()
	return s.finish(exampletest.Command(s.env, args...), exit, want)
}

func (s *stage) finish(cmd *exec.Cmd, exit int, want string) string {
	s.t.Helper()
	cmd.Dir = s.dir
	out, err := cmd.CombinedOutput()
	var e *exec.ExitError
	if err != nil && !errors.As(err, &e) {
		s.t.Fatal(err)
	}
	if code := cmd.ProcessState.ExitCode(); code != exit || !strings.Contains(string(out), want) {
		s.t.Fatalf("%q: exit status %d, want %d; want %q in what it printed:\n%s", cmd.Args[1:], code, exit, want, out)
	}
	if s.secret != "" && strings.Contains(string(out), s.secret) {
		s.t.Errorf("%q printed the PIN:\n%s", cmd.Args[1:], out)
	}
	return string(out)
}

func (s *stage) openssl(args ...string) string {
	s.t.Helper()
	return exampletest.Run(s.t, nil, s.dir, exampletest.Need(s.t, "openssl", "openssl"), args...)
}

// root makes a root CA with openssl.
func (s *stage) root(name string) {
	s.t.Helper()
	s.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", name+".key", "-out", name+".pem",
		"-days", "3650", "-subj", "/CN="+name, "-addext", "keyUsage=critical,keyCertSign,cRLSign")
}

// issue has a root issue a CA certificate from a request.
func (s *stage) issue(root, csr, out, days, extensions string) {
	s.t.Helper()
	ext := exampletest.Write(s.t, s.dir, "ext.cnf", extensions)
	s.openssl("x509", "-req", "-in", csr, "-CA", root+".pem", "-CAkey", root+".key", "-CAcreateserial", "-days", days, "-extfile", ext, "-out", out)
}

const issuing = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign,digitalSignature\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"

// TestCeremony holds the whole ceremony on each kind of device.
func TestCeremony(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(t *testing.T, s *stage) func(key string) string // returns URIs
	}{
		{"pkcs11", func(t *testing.T, s *stage) func(string) string {
			k := exampletest.SoftHSM(t)
			s.env, s.secret = k.Env, k.PIN
			return k.URI
		}},
		{"tpm", func(t *testing.T, s *stage) func(string) string {
			m := exampletest.NewTPM(t)
			return func(key string) string {
				return "tpm:" + s.path(key+".tpm") + "?chain=" + s.path(key+".pem") + "&device=unix:" + m.Socket
			}
		}},
		{"file", func(t *testing.T, s *stage) func(string) string {
			return func(key string) string { return "file:" + s.path(key+".key") + "?chain=" + s.path(key+".pem") }
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &stage{t: t, dir: t.TempDir()}
			uri := tt.make(t, s)
			log := []string{"-transcript", s.path("transcript")}
			run := func(exit int, want, command, uri string, more ...string) string {
				t.Helper()
				return s.run(exit, want, append(append([]string{command, "-key", uri}, log...), more...)...)
			}
			s.root("root")

			run(0, "ECDSA P-256", "create", uri("ca"), "-type", "p256")
			run(1, "exists", "create", uri("ca"))
			run(1, "there is no certificate", "check", uri("ca"))
			run(0, "SHA-256", "csr", uri("ca"), "-cn", "Issuing", "-o", "Example", "-c", "CH", "-out", s.path("ca.csr"))
			run(1, "nothing is overwritten", "csr", uri("ca"), "-cn", "Issuing", "-out", s.path("ca.csr"))
			if text := s.openssl("req", "-in", "ca.csr", "-noout", "-text", "-verify"); !strings.Contains(text, "CA:TRUE") || !strings.Contains(text, "C = CH, O = Example, CN = Issuing") {
				t.Errorf("the request:\n%s", text)
			}
			s.issue("root", "ca.csr", "issued.pem", "1825", issuing)
			run(1, "does not belong", "import", uri("ca"), s.path("root.pem"))
			run(0, "sign and verify        works", "import", uri("ca"), s.path("issued.pem"), s.path("root.pem"))
			out := run(0, "issued by", "check", uri("ca"))
			if warned := strings.Contains(out, "WARNING"); warned != (tt.name == "file") {
				t.Errorf("warned: %t\n%s", warned, out)
			}

			// Nothing is overwritten, unless that is said.
			s.issue("root", "ca.csr", "again.pem", "10", issuing)
			run(1, "exists", "import", uri("ca"), s.path("again.pem"), s.path("root.pem"))
			run(1, "nothing is overwritten", "self-sign", uri("ca"), "-cn", "Issuing")
			if out := run(0, "replaced", "import", uri("ca"), "-replace", s.path("again.pem"), s.path("root.pem")); !strings.Contains(out, "ends on") {
				t.Errorf("no warning of the end:\n%s", out)
			}
			run(0, "replaced", "import", uri("ca"), "-replace", s.path("issued.pem"), s.path("root.pem"))
			s.issue("root", "ca.csr", "server.pem", "10", "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n")
			run(1, "nothing was imported", "import", uri("ca"), "-replace", s.path("server.pem"))

			ca := []string{"-ca", uri("ca")}
			run(0, "new certificate", "ra", uri("ra-{n}"), ca...)
			run(0, "not due", "ra", uri("ra-{n}"), ca...)
			if out := run(0, "SCEP RA", "check", uri("ra-1")); !strings.Contains(out, "decrypt                works") {
				t.Errorf("the RA:\n%s", out)
			}
			run(1, "not found", "check", uri("ra-2"))

			run(0, "RSA-2048", "create", uri("root-ca"), "-decrypt")
			run(0, "CN=Root", "self-sign", uri("root-ca"), "-cn", "Root", "-years", "20")
			if out := run(0, "CN=Root", "check", uri("root-ca")); !strings.Contains(out, "decrypt                works") {
				t.Errorf("a CA that can decrypt:\n%s", out)
			}
			run(1, "nothing is overwritten", "self-sign", uri("root-ca"), "-cn", "Root")

			s.transcript("transcript")
		})
	}
}

// transcript holds the transcript to what an auditor needs.
func (s *stage) transcript(name string) {
	s.t.Helper()
	text, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	if s.secret != "" && bytes.Contains(text, []byte(s.secret)) {
		s.t.Error("the PIN is in the transcript")
	}
	var lines, failed int
	created := map[string]bool{}
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); lines++ {
		var r record
		d := json.NewDecoder(bytes.NewReader(scan.Bytes()))
		d.DisallowUnknownFields()
		if err := d.Decode(&r); err != nil {
			s.t.Fatalf("line %d: %v", lines+1, err)
		}
		if r.Time.IsZero() || r.Host == "" || r.User == "" || r.Program == "" || r.Go == "" || len(r.Arguments) < 2 {
			s.t.Errorf("line %d lacks something: %s", lines+1, scan.Text())
		}
		if r.Outcome == "failed" {
			failed++
			if r.Error == "" {
				s.t.Errorf("line %d failed for no reason", lines+1)
			}
			continue
		}
		if r.Outcome != "done" || r.Key == nil || len(r.Key.SPKI) != 64 || len(r.Key.Attributes) == 0 {
			s.t.Errorf("line %d lacks something: %s", lines+1, scan.Text())
		}
		switch r.Command {
		case "create":
			created[r.Key.SPKI] = true
		case "import", "self-sign", "csr":
			if !created[r.Key.SPKI] {
				s.t.Errorf("line %d is about a key that was not made", lines+1)
			}
			if r.Command == "csr" && len(r.Request) != 64 || r.Command != "csr" && (len(r.Key.Certificates) == 0 || r.Tests["sign and verify"] != "works") {
				s.t.Errorf("line %d lacks something: %s", lines+1, scan.Text())
			}
		case "ra":
			if r.CA == nil || !created[r.CA.SPKI] || len(r.Key.Certificates) < 2 {
				s.t.Errorf("line %d lacks something: %s", lines+1, scan.Text())
			}
		}
	}
	if lines != 21 || failed != 9 {
		s.t.Errorf("%d lines, %d of failures", lines, failed)
	}
}

// TestUsage has what is wrong usage: nothing is done, and no secret is repeated.
func TestUsage(t *testing.T) {
	s := &stage{t: t, dir: t.TempDir(), secret: "4711081"}
	key := "file:" + s.path("ca.key") + "?chain=" + s.path("ca.pem")
	for _, tt := range []struct {
		exit int
		want string
		args []string
	}{
		{2, "usage: ceremony", nil},
		{0, "usage: ceremony", []string{"help"}},
		{2, "usage: ceremony", []string{"destroy"}},
		{0, "-decrypt", []string{"create", "-h"}},
		{2, "-key is missing", []string{"create"}},
		{2, "-pin", []string{"create", "-key", key, "-pin=4711081"}},
		{2, "too much", []string{"create", "-key", key, "4711081"}},
		{2, "pin-value", []string{"create", "-key", "pkcs11:token=ca;object=x?pin-value=4711081"}},
		{2, "change it", []string{"create", "-key", "pkcs11:token=ca;object=x?pin-source=4711081"}},
		{2, "rsa2048", []string{"create", "-key", key, "-type", "dsa"}},
		{2, "cannot decrypt", []string{"create", "-key", key, "-type", "p256", "-decrypt"}},
		{2, "-cn is missing", []string{"self-sign", "-key", key}},
		{2, "two letters", []string{"self-sign", "-key", key, "-cn", "x", "-c", "CHE"}},
		{2, "1 to 100", []string{"self-sign", "-key", key, "-cn", "x", "-years", "0"}},
		{2, "-out is missing", []string{"csr", "-key", key, "-cn", "x"}},
		{2, "name the files", []string{"import", "-key", key}},
		{2, "-ca is missing", []string{"ra", "-key", key}},
		{2, "has no {n}", []string{"ra", "-key", key, "-ca", key}},
		{2, "{n} is for ra", []string{"create", "-key", "file:" + s.path("ca-{n}.key")}},
		{1, "no driver", []string{"create", "-key", "kms:ca"}},
		{1, "not found", []string{"check", "-key", key}},
	} {
		args := tt.args
		if len(args) > 0 && args[0] != "help" && args[0] != "destroy" {
			args = append([]string{args[0], "-transcript", s.path("transcript")}, args[1:]...)
		}
		s.run(tt.exit, tt.want, args...)
	}
	text, err := os.ReadFile(s.path("transcript"))
	if err != nil || bytes.Count(text, []byte("\n")) != 2 || bytes.Contains(text, []byte(s.secret)) {
		t.Errorf("transcript: %v\n%s", err, text)
	}
	if files, err := os.ReadDir(s.dir); err != nil || len(files) != 1 {
		t.Errorf("there are files: %v, %v", files, err)
	}
}

// TestTranscriptFirst does nothing that could not be written down.
func TestTranscriptFirst(t *testing.T) {
	s := &stage{t: t, dir: t.TempDir()}
	key := "file:" + s.path("ca.key") + "?chain=" + s.path("ca.pem")
	exampletest.Write(t, s.dir, "other", "-----BEGIN PRIVATE KEY-----\n")
	s.run(1, "not a transcript", "create", "-key", key, "-transcript", s.path("other"))
	s.run(1, "transcript", "create", "-key", key, "-transcript", s.path("none/transcript"))
	if _, err := os.Stat(s.path("ca.key")); err == nil {
		t.Error("a key was made")
	}
	// Half a line, from a crash, does not spoil the next.
	exampletest.Write(t, s.dir, "transcript", `{"time":"20`)
	s.run(0, "RSA-2048", "create", "-key", key, "-transcript", s.path("transcript"))
	text, err := os.ReadFile(s.path("transcript"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) != 2 || !json.Valid([]byte(lines[1])) {
		t.Errorf("transcript:\n%s", text)
	}
}

// TestWeak warns of a key that can leave its token.
func TestWeak(t *testing.T) {
	k := exampletest.SoftHSM(t)
	s := &stage{t: t, dir: t.TempDir(), env: k.Env, secret: k.PIN}
	exampletest.Run(t, k.Env, s.dir, exampletest.Need(t, "pkcs11-tool", "opensc"), "--module", k.Module, "--token-label", "ca", "--login", "--pin", k.PIN,
		"--keypairgen", "--key-type", "rsa:2048", "--label", "weak", "--id", "01", "--extractable", "--usage-sign")
	s.run(0, "CN=Weak", "self-sign", "-key", k.URI("weak"), "-cn", "Weak")
	if out := s.run(0, "CKA_EXTRACTABLE is true", "check", "-key", k.URI("weak")); strings.Count(out, "WARNING") < 2 {
		t.Errorf("too few warnings:\n%s", out)
	}
}

// TestEnded finds a certificate that has ended, and one whose chain is another key's.
// A new RA is made when it is time, and is the one that is examined, though it does not serve yet.
func TestRATakesOver(t *testing.T) {
	s := &stage{t: t, dir: t.TempDir()}
	before := func() time.Time { return time.Now().AddDate(0, 0, -300) }
	ca, err := file.CreateCA(s.path("ca.pem"), s.path("ca.key"), file.CAOptions{Time: before})
	if err != nil {
		t.Fatal(err)
	}
	uri := "file:" + s.path("ra-{n}.key") + "?chain=" + s.path("ra-{n}.pem")
	ra, _, err := backend.RA(t.Context(), ca, uri, backend.RSA2048, backend.RAOptions{Time: before}, file.Driver{})
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"ra", "-key", uri, "-ca", "file:" + s.path("ca.key") + "?chain=" + s.path("ca.pem")}
	if out := s.run(0, "takes over in a day or less", args...); strings.Contains(out, serial(ra.Certificate())) {
		t.Errorf("it examined the old one:\n%s", out)
	}
	s.run(0, serial(ra.Certificate()), args...) // not due
}

func TestEnded(t *testing.T) {
	s := &stage{t: t, dir: t.TempDir()}
	key := "file:" + s.path("ca.key") + "?chain=" + s.path("ca.pem")
	s.run(0, "RSA-2048", "create", "-key", key)
	old := s.old("ca.key")
	exampletest.Write(t, s.dir, "old.pem", old)
	s.run(1, "ended on 2021", "import", "-key", key, s.path("old.pem"))
	if _, err := os.Stat(s.path("ca.pem")); err == nil {
		t.Error("it was imported")
	}
	exampletest.Write(t, s.dir, "ca.pem", old)
	s.run(1, "PROBLEM", "check", "-key", key)
}

// old returns a CA certificate, in PEM, of the key in a file, that has ended.
func (s *stage) old(name string) string {
	s.t.Helper()
	text, err := os.ReadFile(s.path(name))
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	end := time.Date(2021, 1, 1, 0, 0, 0, 0, time.UTC)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Old"}, NotBefore: end.AddDate(-1, 0, 0), NotAfter: end,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.(crypto.Signer).Public(), key)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}
