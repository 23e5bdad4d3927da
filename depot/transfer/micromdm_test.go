package transfer_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// folder is one of a micromdm/scep server, as its depot/file writes it.
type folder struct {
	dir  string
	ca   *scep.Identity
	next int64
}

func newFolder(t *testing.T, ca *scep.Identity) *folder {
	f := &folder{dir: t.TempDir(), ca: ca, next: 2}
	f.write(t, "ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}))
	f.write(t, "ca.key", []byte("nobody reads this"))
	f.write(t, "index.txt", nil)
	return f
}

func (f *folder) write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (f *folder) index(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, "index.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// issue writes a certificate and its line, with this status and revocation.
func (f *folder) issue(t *testing.T, cn, status, revocation string, key int) *x509.Certificate {
	t.Helper()
	serial := big.NewInt(f.next)
	f.next++
	now := time.Now()
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 0, 5),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, f.ca.Certificate(), sceptest.RSA(key).Public(), f.ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("%s.%d.pem", cn, serial)
	f.write(t, name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	hex := fmt.Sprintf("%X", serial)
	if len(hex)%2 == 1 {
		hex = "0" + hex
	}
	f.write(t, "index.txt", fmt.Appendf(nil, "%s%s\t%s\t%s\t%s\t%s\t/CN=%s\n",
		f.index(t), status, cert.NotAfter.Format("060102150405Z"), revocation, hex, name, cn))
	return cert
}

// problems collects what is reported.
type problems map[string]string

func (p problems) options(ca *scep.Identity) transfer.MicroMDM {
	return transfer.MicroMDM{CA: ca.Certificate(), Report: func(name string, err error) { p[name] = err.Error() }}
}

// TestMicroMDM moves a server: its devices renew at the new one, those that were revoked do not.
func TestMicroMDM(t *testing.T) {
	ca := sceptest.NewCA(t)
	f := newFolder(t, ca)
	good := f.issue(t, "device-1", "V", "", 1)
	revoked := f.issue(t, "device-2", "R", "260101000000Z,keyCompromise", 2)
	odd := "a\tdevice"
	if runtime.GOOS == "windows" {
		odd = "a device"
	}
	tab := f.issue(t, odd, "V", "", 3)
	for range 20 { // past serial number 15, which has one digit
		f.issue(t, "more", "R", "20260102000000Z", 4)
	}
	f.issue(t, "expired", "E", "", 4)

	db, p := open(t), problems{}
	n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil)
	if n != 24 || skipped != 0 || err != nil || len(p) != 0 {
		t.Fatalf("%d, %d skipped, %v; %v", n, skipped, err, p)
	}
	for range 2 {
		if n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil); n != 0 || skipped != 24 || err != nil {
			t.Errorf("again: %d, %d skipped, %v; %v", n, skipped, err, p)
		}
	}

	srv := sceptest.NewServer(t, scep.Config{CA: ca, Depot: db, Renewal: scep.Renewal{On: true, Anytime: true}})
	device := func(cert *x509.Certificate, key int) *sceptest.Device {
		d := srv.Device(0).As(cert, sceptest.RSA(key))
		d.Subject, d.Key = cert.RawSubject, sceptest.RSA(5)
		return d
	}
	next := device(good, 1).Renew(t, good, sceptest.RSA(1))
	if next.Subject.CommonName != "device-1" || next.CheckSignatureFrom(ca.Certificate()) != nil {
		t.Errorf("renewed: %v", next.Subject)
	}
	d := device(good, 1)
	if got := d.Send(t, d.GetCert(t, good.RawIssuer, good.SerialNumber)); got.Status != sceptest.StatusSuccess {
		t.Errorf("GetCert: %+v", got)
	}
	d = device(revoked, 2)
	if got := d.Send(t, d.RenewalReq(t)); got.Status != sceptest.StatusFailure {
		t.Errorf("a certificate that was revoked: %+v", got)
	}
	rec, err := db.GetSerial(t.Context(), revoked.RawIssuer, revoked.SerialNumber)
	if err != nil || rec.State != scep.Revoked || rec.RevocationReason != int(scep.KeyCompromise) || !rec.Revoked.Equal(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%+v, %v", rec, err)
	}
	if rec, err := db.GetSerial(t.Context(), tab.RawIssuer, tab.SerialNumber); err != nil || !rec.ID.Valid() || !rec.Transaction.Valid() || rec.ID == rec.Transaction {
		t.Errorf("%+v, %v", rec, err)
	}

	// The old server went on for a while. What the new one noted stays.
	f.write(t, "index.txt", []byte(strings.Replace(f.index(t), "V\t", "R\t", 1)))
	f.write(t, "index.txt", []byte(strings.Replace(f.index(t), "\t\t02\t", "\t260301000000Z,superseded\t02\t", 1)))
	f.issue(t, "late", "V", "", 6)
	if n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil); n != 2 || skipped != 23 || err != nil {
		t.Errorf("after changes: %d, %d skipped, %v; %v", n, skipped, err, p)
	}
	rec, err = db.GetSerial(t.Context(), good.RawIssuer, good.SerialNumber)
	if err != nil || rec.State != scep.Revoked || rec.RevocationReason != int(scep.Superseded) || len(rec.RenewedBy) != 1 {
		t.Errorf("%+v, %v", rec, err)
	}
}

// Damage is reported, and the rest is imported.
func TestMicroMDMDamage(t *testing.T) {
	ca := sceptest.NewCA(t)
	f := newFolder(t, ca)
	first := f.issue(t, "first", "V", "", 1) // 2
	f.issue(t, "gone", "V", "", 1)           // 3
	f.issue(t, "text", "V", "", 1)           // 4
	f.issue(t, "swapped", "V", "", 1)        // 5
	f.issue(t, "status", "X", "", 1)         // 6
	f.issue(t, "when", "R", "yesterday", 1)  // 7
	f.issue(t, "unlisted", "V", "", 1)       // 8
	f.issue(t, "../../escape", "V", "", 1)   // 9
	other := newFolder(t, sceptest.NewCA(t, sceptest.RSA3072()))
	other.next = 10
	foreign := other.issue(t, "foreign", "V", "", 1)
	last := f.issue(t, "last", "V", "", 1) // 10, which is foreign's too
	defer os.Remove(filepath.Join(f.dir, "../../escape.9.pem"))

	os.Remove(filepath.Join(f.dir, "gone.3.pem"))
	f.write(t, "text.4.pem", []byte("no certificate"))
	f.write(t, "swapped.5.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Raw}))
	f.write(t, "foreign.10.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: foreign.Raw}))
	var index []string
	for line := range strings.Lines(f.index(t)) {
		if !strings.Contains(line, "unlisted") {
			index = append(index, line)
		}
	}
	index = append(index[:5:5], append([]string{
		"half a li\n",
		"V\t270101000000Z\t\tno number\tx.pem\t/CN=x\n",
		"V\t270101000000Z\t\t0A\tforeign.10.pem\t/CN=foreign\r\n",
	}, index[5:]...)...)
	f.write(t, "index.txt", []byte(strings.Join(index, "")))

	db, p := open(t), problems{}
	n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil)
	if n != 3 || skipped != 0 || !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("%d, %d skipped, %v", n, skipped, err)
	}
	for name, want := range map[string]string{
		"gone.3.pem": "no such file", "text.4.pem": "no certificate", "swapped.5.pem": "serial number",
		"index.txt, line 5": "status", "status.6.pem": "not in index.txt", "index.txt, line 9": "yesterday",
		"unlisted.8.pem": "not in index.txt", "../../escape.9.pem": "escapes",
		"foreign.10.pem": "was issued by", "index.txt, line 6": "six fields", "index.txt, line 7": "serial number",
	} {
		if !strings.Contains(p[name], want) {
			t.Errorf("%s: %q; want %q", name, p[name], want)
		}
		delete(p, name)
	}
	if len(p) > 0 {
		t.Errorf("and %v", p)
	}
	for _, cert := range []*x509.Certificate{first, last} {
		if rec, err := db.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber); err != nil || !bytes.Equal(rec.Certificate, cert.Raw) {
			t.Errorf("%s: %v", cert.Subject, err)
		}
	}
	rec, err := db.GetSerial(t.Context(), first.RawIssuer, big.NewInt(7))
	if err != nil || rec.State != scep.Revoked || time.Since(rec.Revoked) > time.Minute {
		t.Errorf("revoked nobody knows when: %+v, %v", rec, err)
	}

	// Under another profile it is another's.
	o := p.options(ca)
	o.Profile = "another"
	if _, _, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, o, nil); !errors.Is(err, transfer.ErrIncomplete) || !strings.Contains(p["first.2.pem"], "profile") {
		t.Errorf("under another profile: %v; %v", err, p)
	}
}

func TestMicroMDMRefuses(t *testing.T) {
	ca := sceptest.NewCA(t)
	if _, _, err := transfer.ImportMicroMDM(t.Context(), t.TempDir(), open(t), problems{}.options(ca), nil); err == nil || !strings.Contains(err.Error(), "index.txt") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, _, err := transfer.ImportMicroMDM(t.Context(), filepath.Join(t.TempDir(), "missing"), open(t), problems{}.options(ca), nil); err == nil {
		t.Error("no folder: no error")
	}
}
