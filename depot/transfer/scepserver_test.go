//go:build unix

package transfer_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestSCEPServer imports the folder of micromdm's server itself, after its client has enrolled
// with it, and then the client's certificate is renewed here. Its CA's certificate allows it to
// sign certificates only, so that there must be an RA.
func TestSCEPServer(t *testing.T) {
	for _, name := range []string{"scepserver", "scepclient", "openssl"} {
		if _, err := exec.LookPath(name); err != nil {
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

	ca := &scep.Identity{Certificates: []*x509.Certificate{readCertificate(t, filepath.Join(folder, "ca.pem"))}}
	run("openssl", "rsa", "-traditional", "-in", filepath.Join(folder, "ca.key"), "-passin", "pass:old", "-out", "ca.key")
	ca.Key = readKey(t, filepath.Join(dir, "ca.key"))

	db, p := open(t), problems{}
	n, skipped, err := transfer.ImportMicroMDM(t.Context(), folder, db, p.options(ca), nil)
	index, _ := os.ReadFile(filepath.Join(folder, "index.txt"))
	if n != 2 || skipped != 0 || err != nil {
		t.Fatalf("%d, %d skipped, %v; %v\n%s", n, skipped, err, p, index)
	}
	first := readCertificate(t, filepath.Join(dir, "first", "device.pem"))
	if rec, err := db.GetSerial(t.Context(), first.RawIssuer, first.SerialNumber); err != nil || rec.State != scep.Revoked {
		t.Errorf("what the device had before: %+v, %v\n%s", rec, err, index)
	}
	srv := sceptest.NewServer(t, scep.Config{
		CA: ca, RA: sceptest.NewRA(t, ca), Depot: db, Renewal: scep.Renewal{On: true, Anytime: true},
	})
	cert, key := readCertificate(t, filepath.Join(dir, "second", "device.pem")), readKey(t, filepath.Join(dir, "second", "device.key"))
	d := srv.Device(0).As(cert, key)
	d.Subject, d.Key = cert.RawSubject, sceptest.RSA(2)
	if next := d.Renew(t, cert, key); !bytes.Equal(next.RawSubject, cert.RawSubject) {
		t.Errorf("renewed: %v", next.Subject)
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

func readKey(t *testing.T, name string) *rsa.PrivateKey {
	t.Helper()
	key, err := x509.ParsePKCS1PrivateKey(readPEM(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return key
}
