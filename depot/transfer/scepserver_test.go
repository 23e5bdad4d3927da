//go:build unix

package transfer_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestSCEPServer imports the folder of micromdm's server itself, after its client has enrolled
// with it, and then has the client renew its certificate here. Its CA's certificate allows it to
// sign certificates only, so that there must be an RA.
func TestSCEPServer(t *testing.T) {
	for _, name := range []string{"scepserver", "scepclient", "openssl"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%v (Debian packages scep and openssl)", err)
		}
	}
	dir := t.TempDir()
	folder := filepath.Join(dir, "depot")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := func(name string, args ...string) {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	run("scepserver", "ca", "-init", "-depot", folder, "-keySize", "2048", "-key-password", "old")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	server := exec.CommandContext(ctx, "scepserver", "-depot", folder, "-port", port, "-challenge", "x", "-capass", "old", "-allowrenew", "0")
	var log bytes.Buffer
	server.Stderr = &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	stop := func() { server.Process.Kill(); server.Wait() }
	defer stop()
	for {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
			break
		}
		if ctx.Err() != nil {
			stop()
			t.Fatalf("the server does not start: %s", log.Bytes())
		}
		time.Sleep(20 * time.Millisecond)
	}
	for _, name := range []string{"first", "second"} { // beside the key the client keeps other things
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		run("scepclient", "-server-url", "http://127.0.0.1:"+port+"/scep", "-challenge", "x", "-cn", "device",
			"-private-key", name+"/device.key", "-certificate", name+"/device.pem")
	}
	stop()

	// The key in ca.key is encrypted, in a way of its own.
	if _, err := file.Open(filepath.Join(folder, "ca.pem"), filepath.Join(folder, "ca.key")); err == nil || !strings.Contains(err.Error(), "openssl pkey -in") {
		t.Errorf("with the key encrypted: %v", err)
	}
	run("openssl", "pkey", "-in", filepath.Join(folder, "ca.key"), "-passin", "pass:old", "-out", "ca.key")
	ca, err := file.Open(filepath.Join(folder, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	db, p := open(t), problems{}
	n, skipped, err := transfer.ImportMicroMDM(ctx, folder, db, p.options(ca), nil)
	index, _ := os.ReadFile(filepath.Join(folder, "index.txt"))
	if n != 2 || skipped != 0 || err != nil {
		t.Fatalf("%d, %d skipped, %v; %v\n%s", n, skipped, err, p, index)
	}
	first := readCertificate(t, filepath.Join(dir, "first", "device.pem"))
	if rec, err := db.GetSerial(ctx, first.RawIssuer, first.SerialNumber); err != nil || rec.State != scep.Revoked {
		t.Errorf("what the device had before: %+v, %v\n%s", rec, err, index)
	}

	ra, _, err := file.RA(ctx, ca, filepath.Join(dir, "ra"), file.RAOptions{})
	if err != nil {
		t.Fatal(err)
	}
	srv := sceptest.NewServer(t, scep.Config{
		CA: ca, RA: ra, PastRA: []*scep.Identity{ca}, Depot: db, Renewal: scep.Renewal{On: true, Anytime: true},
		Challenge: scep.ChallengeFunc(func(context.Context, *scep.Request) error {
			return scep.Reject(scep.BadRequest, "nobody is to enrol anew")
		}),
		Legacy: scep.SingleDES | scep.SHA1, // which is all that its client has
	})
	// The client has nothing new but the URL.
	cert := readCertificate(t, filepath.Join(dir, "second", "device.pem"))
	run("scepclient", "-server-url", srv.URL, "-cn", "device", "-private-key", "second/device.key", "-certificate", "second/device.pem")
	next := readCertificate(t, filepath.Join(dir, "second", "device.pem"))
	switch {
	case next.Equal(cert):
		t.Error("the certificate is the old one")
	case !bytes.Equal(next.RawSubject, cert.RawSubject), next.CheckSignatureFrom(ca.Certificate()) != nil:
		t.Errorf("renewed: %q by %q", next.Subject, next.Issuer)
	}
	if rec, err := db.GetSerial(ctx, next.RawIssuer, next.SerialNumber); err != nil || rec.Renews == "" {
		t.Errorf("record of the renewal: %+v, %v", rec, err)
	}
	// A device that has kept the CA's certificate, and does not ask again, knows of no RA.
	if err := os.Chmod(filepath.Join(dir, "second", "device.key"), 0o600); err != nil {
		t.Fatal(err)
	}
	device, err := file.Open(filepath.Join(dir, "second", "device.pem"), filepath.Join(dir, "second", "device.key"))
	if err != nil {
		t.Fatal(err)
	}
	kept := *ca.Certificate()
	kept.KeyUsage = 0 // which such devices do not look at
	d := srv.Device(0).As(next, device.Key).To(&kept)
	d.Subject, d.Key = next.RawSubject, sceptest.RSA(2)
	if again := d.Renew(t, next, device.Key); again.CheckSignatureFrom(ca.Certificate()) != nil {
		t.Errorf("renewed by way of the CA: %q", again.Issuer)
	}

	// What it had before it had that is revoked.
	stale := exec.CommandContext(ctx, "scepclient", "-server-url", srv.URL, "-cn", "device", "-private-key", "first/device.key", "-certificate", "first/device.pem")
	stale.Dir = dir
	if out, err := stale.CombinedOutput(); err == nil {
		t.Errorf("a revoked certificate was renewed:\n%s", out)
	}
}

func readPEM(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("%s has no PEM", name)
	}
	return block.Bytes
}

func readCertificate(t *testing.T, name string) *x509.Certificate {
	t.Helper()
	cert, err := x509.ParseCertificate(readPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
