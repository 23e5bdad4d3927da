package transfer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// TestMicroMDMEdited imports a folder that people and other systems have had in their hands.
func TestMicroMDMEdited(t *testing.T) {
	ca := sceptest.NewCA(t, sceptest.P256())
	f := newFolder(t, ca)
	f.issue(t, "device-2", "V", "", 1)  // 2
	f.issue(t, "größe", "V", "", 1)     // 3
	f.issue(t, "two lines", "V", "", 1) // 4
	f.issue(t, "counted", "V", "", 1)   // 5
	f.issue(t, "last", "E", "", 1)      // 6
	f.issue(t, "gone", "V", "", 1)      // 7
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(f.dir, from), filepath.Join(f.dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	rename("device-2.2.pem", "device_2.2.pem")
	rename("größe.3.pem", "gr÷·e.3.pem")
	// Two requests at once had one number in the names of their files.
	rename("counted.5.pem", "counted.4.pem")
	rename("gone.7.pem", "gone.8.pem")
	index := strings.Replace(f.index(t), "counted.5.pem", "counted.4.pem", 1)
	index = "\ufeff" + strings.ReplaceAll("\n# kept since 2019\n"+index+"\n  \n", "\n", "\r\n")
	f.write(t, "index.txt", []byte(index))

	db, p := open(t), problems{}
	n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil)
	if n != 5 || skipped != 0 || !errors.Is(err, transfer.ErrIncomplete) {
		t.Errorf("%d, %d skipped, %v", n, skipped, err)
	}
	if len(p) != 2 || !strings.Contains(p["gone.7.pem"], "no such file") && !strings.Contains(p["gone.7.pem"], "cannot find") || p["gone.8.pem"] != "is not in index.txt" {
		t.Errorf("%v", p)
	}
}

// TestMicroMDMReplaced imports certificates that micromdm called revoked because it issued others.
func TestMicroMDMReplaced(t *testing.T) {
	ca := sceptest.NewCA(t)
	f := newFolder(t, ca)
	shared := f.issue(t, "MDM identity", "R", "260102000000Z", 1)
	f.issue(t, "MDM identity", "V", "", 2)
	stolen := f.issue(t, "stolen", "R", "260102000000Z,keyCompromise", 3)
	odd := f.issue(t, "odd", "R", "26", 3)
	db, p := open(t), problems{}
	o := p.options(ca)
	o.KeepReplaced = true
	n, _, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, o, nil)
	if n != 4 || !errors.Is(err, transfer.ErrIncomplete) || len(p) != 1 {
		t.Fatalf("%d, %v; %v", n, err, p)
	}
	srv := sceptest.NewServer(t, scep.Config{CA: ca, Depot: db, Renewal: scep.Renewal{On: true, Anytime: true}})
	d := srv.Device(1).As(shared, sceptest.RSA(1))
	d.Subject, d.Key = shared.RawSubject, sceptest.RSA(4)
	if cert := d.Renew(t, shared, sceptest.RSA(1)); !bytes.Equal(cert.RawSubject, shared.RawSubject) {
		t.Errorf("renewed %q", cert.Subject)
	}
	for _, cert := range []*scep.Record{{Serial: stolen.SerialNumber}, {Serial: odd.SerialNumber}} {
		if rec, err := db.GetSerial(t.Context(), ca.Certificate().RawSubject, cert.Serial); err != nil || rec.State != scep.Revoked {
			t.Errorf("certificate %x is %v, %v", cert.Serial, rec.State, err)
		}
	}
	// Twice in the index: revoked counts, in whichever order the lines come.
	for i := range 4 {
		f := newFolder(t, ca)
		cert := f.issue(t, "twice", "V", "", 1)
		line := f.index(t)
		lines := []string{line, strings.Replace(strings.Replace(line, "V\t", "R\t", 1), "Z\t\t", "Z\t260102000000Z\t", 1)}
		f.write(t, "index.txt", []byte(lines[i%2]+lines[1-i%2]))
		db := open(t)
		if n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, problems{}.options(ca), nil); n+skipped != 2 || err != nil {
			t.Errorf("%d, %d skipped, %v", n, skipped, err)
		}
		if rec, err := db.GetSerial(t.Context(), cert.RawIssuer, cert.SerialNumber); err != nil || rec.State != scep.Revoked {
			t.Errorf("%v, %v", rec.State, err)
		}
	}
}

// TestMicroMDMResumed imports some thousands, with a disk that is full now and then.
func TestMicroMDMResumed(t *testing.T) {
	all := 3000
	if raceEnabled {
		all = 600 // is slow
	}
	ca := sceptest.NewCA(t, sceptest.P256())
	f := newFolder(t, ca)
	var index bytes.Buffer
	for i := range all {
		f.write(t, "index.txt", nil)
		f.issue(t, fmt.Sprint("device ", i), "V", "", i%4)
		index.WriteString(f.index(t))
	}
	f.write(t, "index.txt", index.Bytes())
	to, p, sum := new(failing), problems{}, 0
	for tries := 0; ; tries++ {
		to.left = make(chan struct{}, (tries+1)*all*2/5) // a bit further each time
		for range cap(to.left) {
			to.left <- struct{}{}
		}
		n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, to, p.options(ca), nil)
		sum += n
		if err == nil {
			if n+skipped != all || sum > all || tries == 0 {
				t.Errorf("%d in all, %d and %d skipped at try %d", sum, n, skipped, tries)
			}
			break
		}
		if !errors.Is(err, errDisk) || tries == 5 {
			t.Fatal(tries, err)
		}
	}
	list, err := to.List(t.Context(), scep.Query{Limit: all + 1})
	if err != nil || len(list) != all || len(p) != 0 {
		t.Errorf("%d records, %v; %v", len(list), err, p)
	}
}

// An import that is cancelled ends soon, and can be called again.
func TestMicroMDMCancelled(t *testing.T) {
	ca := sceptest.NewCA(t, sceptest.P256())
	f := newFolder(t, ca)
	for i := range 20 {
		f.issue(t, fmt.Sprint("device ", i), "V", "", 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to := new(depot.Memory)
	if _, _, err := transfer.ImportMicroMDM(ctx, f.dir, to, problems{}.options(ca), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if n, skipped, err := transfer.ImportMicroMDM(t.Context(), f.dir, to, problems{}.options(ca), nil); n+skipped != 20 || err != nil {
		t.Errorf("again: %d, %d skipped, %v", n, skipped, err)
	}
}

// TestMicroMDMSubjects renews certificates whose subject is not quite that of the CSR, because
// micromdm writes names in its own order, without what it does not know; and one that is signed
// with SHA-1, because the CSR was.
func TestMicroMDMSubjects(t *testing.T) {
	type rdn = sceptest.RDN
	ou, email := asn1.ObjectIdentifier{2, 5, 4, 11}, asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}
	attribute := func(id asn1.ObjectIdentifier, value string) rdn {
		return rdn{{Type: id, Tag: sceptest.TagUTF8String, Value: value}}
	}
	names := []rdn{
		attribute(asn1.ObjectIdentifier{2, 5, 4, 6}, "DE"), attribute(asn1.ObjectIdentifier{2, 5, 4, 8}, "Hessen"),
		attribute(asn1.ObjectIdentifier{2, 5, 4, 7}, "Kassel"), attribute(asn1.ObjectIdentifier{2, 5, 4, 10}, "Größe & Söhne"),
		attribute(ou, "b"), attribute(ou, "a"), attribute(sceptest.OIDCommonName, "device"), attribute(email, "device@example.com"),
	}
	asked := sceptest.Name(names...)
	ca := sceptest.NewCA(t)
	f := newFolder(t, ca)
	csr, err := x509.ParseCertificateRequest(sceptest.CSR{Key: sceptest.RSA(1), Subject: asked}.DER())
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: csr.Subject, SignatureAlgorithm: x509.SHA1WithRSA,
		NotBefore: time.Now().Add(-10 * time.Minute), NotAfter: time.Now().AddDate(0, 0, 5),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.Certificate(), sceptest.RSA(1).Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	old, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	f.write(t, "device.2.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	f.write(t, "index.txt", []byte("V\t270101000000Z\t\t02\tdevice.2.pem\t/C=DE/ST=Hessen/L=Kassel/O=Größe & Söhne/OU=b/CN=device\n"))
	db, p := open(t), problems{}
	if n, _, err := transfer.ImportMicroMDM(t.Context(), f.dir, db, p.options(ca), nil); n != 1 || err != nil {
		t.Fatalf("%d, %v; %v", n, err, p)
	}

	srv := sceptest.NewServer(t, scep.Config{CA: ca, Depot: db, Renewal: scep.Renewal{On: true, Anytime: true}})
	d := srv.Device(0).As(old, sceptest.RSA(1))
	d.Key = sceptest.RSA(2)
	renew := func(subject []byte) *sceptest.Reply {
		t.Helper()
		d.Subject = subject
		return d.Send(t, d.RenewalReq(t))
	}
	for name, subject := range map[string][]byte{"as asked the first time": asked, "as in the certificate": old.RawSubject} {
		if r := renew(subject); r.Certificate == nil || !bytes.Equal(r.Certificate.RawSubject, old.RawSubject) {
			t.Errorf("%s: %v", name, r)
		}
	}
	for name, subject := range map[string][]byte{
		"another name": sceptest.Name(attribute(sceptest.OIDCommonName, "other")),
		"less":         sceptest.Name(attribute(sceptest.OIDCommonName, "device")),
		"more":         sceptest.Name(append(names, attribute(asn1.ObjectIdentifier{2, 5, 4, 10}, "Boss"))...),
	} {
		if r := renew(subject); r.Certificate != nil {
			t.Errorf("%s: %v", name, r)
		}
	}
	if r := d.Send(t, d.GetCert(t, old.RawIssuer, old.SerialNumber)); r.Certificate == nil || !r.Certificate.Equal(old) {
		t.Errorf("GetCert: %v", r)
	}
}
