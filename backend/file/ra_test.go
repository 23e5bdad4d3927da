//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package file

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/scep"
)

const day = 24 * time.Hour

var epoch = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func at(d time.Duration) func() time.Time { return func() time.Time { return epoch.Add(d) } }

// testCA makes a CA at the epoch.
func testCA(t *testing.T, o CAOptions) *scep.Identity {
	t.Helper()
	chain, key := caFiles(t)
	o.Time, o.KeyType = at(0), backend.P256
	id, err := CreateCA(chain, key, o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// getRA calls RA at a time after the epoch.
func getRA(t *testing.T, ca scep.CA, dir string, after time.Duration, o RAOptions) (*scep.Identity, []*scep.Identity) {
	t.Helper()
	o.Time = at(after)
	ra, past, err := RA(t.Context(), ca, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if pub := ra.Key.Public().(*rsa.PublicKey); !pub.Equal(ra.Certificate().PublicKey) {
		t.Fatal("key does not belong to the certificate")
	}
	return ra, past
}

func same(a, b *scep.Identity) bool { return a.Certificate().Equal(b.Certificate()) }

func TestRA(t *testing.T) {
	ca := testCA(t, CAOptions{Subject: pkix.Name{CommonName: "Example CA"}})
	dir := filepath.Join(t.TempDir(), "ra")
	ra, past := getRA(t, ca, dir, 0, RAOptions{})
	cert, issuer := ra.Certificate(), ca.Certificate()

	if len(past) != 0 || len(ra.Certificates) != 2 || !ra.Certificates[1].Equal(issuer) {
		t.Errorf("%d past, chain of %d", len(past), len(ra.Certificates))
	}
	if cert.Subject.String() != "CN=Example CA SCEP RA" || !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		t.Errorf("subject %s, issuer %s", cert.Subject, cert.Issuer)
	}
	if n := cert.PublicKey.(*rsa.PublicKey).N.BitLen(); n != 2048 {
		t.Errorf("%d bits", n)
	}
	if !cert.NotBefore.Equal(epoch.Add(-10*time.Minute)) || !cert.NotAfter.Equal(epoch.Add(365*day)) {
		t.Errorf("valid from %v to %v", cert.NotBefore, cert.NotAfter)
	}
	if cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment || len(cert.ExtKeyUsage) != 0 {
		t.Errorf("CA %v, key usage %b, extended %v", cert.IsCA, cert.KeyUsage, cert.ExtKeyUsage)
	}
	if len(cert.SubjectKeyId) != 20 || !bytes.Equal(cert.AuthorityKeyId, issuer.SubjectKeyId) || cert.SerialNumber.BitLen() != 159 {
		t.Errorf("SKI %x, AKI %x, serial %x", cert.SubjectKeyId, cert.AuthorityKeyId, cert.SerialNumber)
	}
	if _, ok := ra.Key.(scep.Unwrapper); !ok {
		t.Error("key cannot decrypt")
	}

	again, past := getRA(t, ca, dir, day, RAOptions{})
	if !same(ra, again) || len(past) != 0 {
		t.Error("called again, it is another")
	}
	onlyFiles(t, dir, "ra-000001.pem")
	file := filepath.Join(dir, "ra-000001.pem")
	if _, err := Open(file, file); err != nil {
		t.Error(err)
	}
	if runtime.GOOS != "windows" && (must(os.Stat(file)).Mode().Perm() != 0o600 || must(os.Stat(dir)).Mode().Perm() != 0o700) {
		t.Error("modes are not 0600 and 0700")
	}

	caFile := write(t, "ca.pem", encodeCerts(issuer), 0o644)
	when := fmt.Sprint(epoch.Add(day).Unix())
	if out := openssl(t, "verify", "-x509_strict", "-attime", when, "-CAfile", caFile, file); !strings.Contains(out, "OK") {
		t.Errorf("openssl verify says %s", out)
	}
	text := openssl(t, "x509", "-in", file, "-noout", "-text")
	for _, want := range []string{"X509v3 Key Usage: critical\n                Digital Signature, Key Encipherment\n", "CA:FALSE", "X509v3 Authority Key Identifier", "X509v3 Subject Key Identifier"} {
		if !strings.Contains(text, want) {
			t.Errorf("openssl does not say %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "Extended Key Usage") {
		t.Error("there is an extended key usage")
	}
}

func TestRARenewal(t *testing.T) {
	ca := testCA(t, CAOptions{})
	dir := t.TempDir()
	first, _ := getRA(t, ca, dir, 0, RAOptions{})

	for _, d := range []time.Duration{0, 100 * day, 243 * day} {
		if ra, past := getRA(t, ca, dir, d, RAOptions{}); !same(ra, first) || len(past) != 0 {
			t.Errorf("after %v it is another, %d past", d, len(past))
		}
	}
	// With less than a third left there is a new one, which takes over a day later: by then all
	// processes have it.
	ra, past := getRA(t, ca, dir, 244*day, RAOptions{})
	if !same(ra, first) || len(past) != 1 || same(past[0], first) {
		t.Fatalf("with less than a third left: same %v, %d past", same(ra, first), len(past))
	}
	second := past[0]
	if ra, past := getRA(t, ca, dir, 245*day-time.Minute, RAOptions{}); !same(ra, first) || len(past) != 1 {
		t.Error("taken over in less than a day")
	}
	if ra, past = getRA(t, ca, dir, 245*day, RAOptions{}); !same(ra, second) || len(past) != 1 || !same(past[0], first) {
		t.Fatalf("not taken over after a day, or %d past", len(past))
	}
	if ra, past := getRA(t, ca, dir, 246*day, RAOptions{}); !same(ra, second) || len(past) != 1 {
		t.Error("renewed twice")
	}
	// What was sealed for the first is still opened.
	secret := []byte("sixteen bytes ok")
	block := must(rsa.EncryptPKCS1v15(rand.Reader, first.Certificate().PublicKey.(*rsa.PublicKey), secret))
	got, err := past[0].Key.(scep.Unwrapper).UnwrapKey(t.Context(), block, 16, &rsa.PKCS1v15DecryptOptions{})
	if err != nil || !bytes.Equal(got, secret) {
		t.Errorf("past key: %v", err)
	}

	if _, past := getRA(t, ca, dir, (365+89)*day, RAOptions{}); len(past) != 1 {
		t.Errorf("89 days after its end: %d past", len(past))
	}
	if ra, past := getRA(t, ca, dir, (365+91)*day, RAOptions{}); !same(ra, second) || len(past) != 0 {
		t.Errorf("91 days after its end: %d past", len(past))
	}
	getRA(t, ca, dir, 600*day, RAOptions{})
	third, past := getRA(t, ca, dir, 601*day, RAOptions{})
	getRA(t, ca, dir, 900*day, RAOptions{})
	fourth, past4 := getRA(t, ca, dir, 901*day, RAOptions{})
	if len(past) != 1 || !same(past[0], second) || len(past4) != 1 || !same(past4[0], third) || same(third, fourth) {
		t.Errorf("%d and %d past", len(past), len(past4))
	}
	onlyFiles(t, dir, "ra-000001.pem", "ra-000002.pem", "ra-000003.pem", "ra-000004.pem")

	// Less than a day before the end there is no day to wait.
	late := t.TempDir()
	one, _ := getRA(t, ca, late, 0, RAOptions{})
	if two, past := getRA(t, ca, late, 364*day+time.Hour, RAOptions{}); same(one, two) || len(past) != 1 {
		t.Errorf("23 hours before the end: the same %v, %d past", same(one, two), len(past))
	}
	// One that lives for an hour takes over within minutes.
	short, hour := t.TempDir(), RAOptions{Validity: time.Hour}
	one, _ = getRA(t, ca, short, 0, hour)
	if ra, past := getRA(t, ca, short, 40*time.Minute, hour); !same(ra, one) || len(past) != 1 {
		t.Errorf("20 minutes before the end: the same %v, %d past", same(ra, one), len(past))
	}
	if ra, past := getRA(t, ca, short, 52*time.Minute, hour); same(ra, one) || len(past) != 1 {
		t.Errorf("12 minutes later: the same %v, %d past", same(ra, one), len(past))
	}

	// One for a day is followed by one for a year, which others do not have yet either.
	grown := t.TempDir()
	one, _ = getRA(t, ca, grown, 0, RAOptions{Validity: day})
	if ra, past := getRA(t, ca, grown, 17*time.Hour, RAOptions{}); !same(ra, one) || len(past) != 1 {
		t.Errorf("followed by one that lives longer: the same %v, %d past", same(ra, one), len(past))
	}
	if ra, _ := getRA(t, ca, grown, 22*time.Hour, RAOptions{}); same(ra, one) {
		t.Error("five hours later it has not taken over")
	}

	// After the end of all of them, as when the service was off for long.
	if ra, past := getRA(t, ca, dir, 2000*day, RAOptions{}); same(ra, fourth) || len(past) != 0 {
		t.Errorf("after years: %d past", len(past))
	}
	// The clock set back: those of the future still open, but do not serve.
	if ra, past := getRA(t, ca, dir, time.Hour, RAOptions{}); !same(ra, first) || len(past) != 4 || !same(past[3], second) {
		t.Errorf("clock set back: %d past", len(past))
	}
}

func TestRANearTheEndOfTheCA(t *testing.T) {
	ca := testCA(t, CAOptions{Validity: 100 * day})
	dir := t.TempDir()
	ra, _ := getRA(t, ca, dir, 0, RAOptions{})
	if !ra.Certificate().NotAfter.Equal(ca.Certificate().NotAfter) {
		t.Errorf("ends %v, the CA %v", ra.Certificate().NotAfter, ca.Certificate().NotAfter)
	}
	// A new one would not last longer.
	if again, past := getRA(t, ca, dir, 99*day, RAOptions{}); !same(ra, again) || len(past) != 0 {
		t.Error("renewed in vain")
	}
	_, _, err := RA(t.Context(), ca, dir, RAOptions{Time: at(101 * day)})
	checkText(t, err, "renew it")
	_, _, err = RA(t.Context(), ca, dir, RAOptions{Time: at(-2 * time.Hour)})
	checkText(t, err, "set the clock")

	// Just made: the RA does not begin before the CA.
	early, _ := getRA(t, ca, t.TempDir(), -time.Hour, RAOptions{})
	if !early.Certificate().NotBefore.Equal(ca.Certificate().NotBefore) {
		t.Errorf("begins %v, the CA %v", early.Certificate().NotBefore, ca.Certificate().NotBefore)
	}
}

func TestRAOfAnotherCA(t *testing.T) {
	one, two := testCA(t, CAOptions{}), testCA(t, CAOptions{})
	dir := t.TempDir()
	first, _ := getRA(t, one, dir, 0, RAOptions{})
	second, past := getRA(t, two, dir, day, RAOptions{})
	if same(first, second) || len(past) != 1 || !same(past[0], first) || !past[0].Certificates[1].Equal(one.Certificate()) {
		t.Errorf("%d past", len(past))
	}
	if err := second.Certificate().CheckSignatureFrom(two.Certificate()); err != nil {
		t.Error(err)
	}
	if back, past := getRA(t, one, dir, day, RAOptions{}); !same(back, first) || len(past) != 1 {
		t.Error("the first CA's is not used again")
	}

	// A new certificate for the same key and name: the RA stays, its chain is new.
	renewed := *one.Certificate()
	renewed.SerialNumber = big.NewInt(5)
	cert, err := one.Sign(t.Context(), &renewed, one.Key.Public())
	if err != nil {
		t.Fatal(err)
	}
	again, _ := getRA(t, &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: one.Key}, dir, day, RAOptions{})
	if !same(again, first) || !again.Certificates[1].Equal(cert) {
		t.Error("the chain is not the CA's own")
	}
}

// TestRATwoInADay has a second one made before the first has taken over. Who looked an hour ago has
// neither, so neither is announced.
func TestRATwoInADay(t *testing.T) {
	ca := testCA(t, CAOptions{})
	dir := t.TempDir()
	first, _ := getRA(t, ca, dir, 0, RAOptions{})
	getRA(t, ca, dir, 10*day, RAOptions{KeyBits: 3072})
	larger := RAOptions{KeyBits: 4096}
	for _, d := range []time.Duration{5 * time.Minute, 23 * time.Hour} {
		if ra, past := getRA(t, ca, dir, 10*day+d, larger); !same(ra, first) || len(past) != 2 {
			t.Errorf("%v after the second was made: still the first %v, %d past", d, same(ra, first), len(past))
		}
	}
	if ra, past := getRA(t, ca, dir, 11*day+time.Hour, larger); same(ra, first) || len(past) != 2 {
		t.Errorf("a day later: still the first %v, %d past", same(ra, first), len(past))
	}
}

func TestRAOptions(t *testing.T) {
	ca := testCA(t, CAOptions{Subject: pkix.Name{CommonName: strings.Repeat("ä", 64)}})
	dir := t.TempDir()
	small, _ := getRA(t, ca, dir, 0, RAOptions{Validity: 30 * day})
	if !small.Certificate().NotAfter.Equal(epoch.Add(30 * day)) {
		t.Errorf("ends %v", small.Certificate().NotAfter)
	}
	if cn := []rune(small.Certificate().Subject.CommonName); len(cn) != 64 || !strings.HasSuffix(string(cn), "ä SCEP RA") {
		t.Errorf("name is %q", string(cn))
	}
	getRA(t, ca, dir, 0, RAOptions{KeyBits: 3072})
	large, past := getRA(t, ca, dir, day, RAOptions{KeyBits: 3072})
	if n := large.Certificate().PublicKey.(*rsa.PublicKey).N.BitLen(); n != 3072 || len(past) != 1 {
		t.Errorf("%d bits, %d past", n, len(past))
	}
	if again, _ := getRA(t, ca, dir, day, RAOptions{KeyBits: 2048}); !same(again, small) {
		t.Error("2048 bits asked for again, and not found")
	}
	if again, _ := getRA(t, ca, dir, day, RAOptions{}); !same(again, large) {
		t.Error("any size asked for, and not the newest found")
	}
	for _, o := range []RAOptions{{KeyBits: 1024}, {KeyBits: 2047}, {KeyBits: -1}, {Validity: time.Minute}, {Validity: -1}} {
		_, _, err := RA(t.Context(), ca, dir, o)
		checkText(t, err, "RAOptions.")
	}
}

// signFunc is a CA that signs as told.
type signFunc struct {
	*scep.Identity
	sign func(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error)
}

func (s signFunc) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	return s.sign(ctx, tmpl, pub)
}

func TestRARefusesWhatItDidNotAskFor(t *testing.T) {
	ca, other := testCA(t, CAOptions{}), testCA(t, CAOptions{})
	broken := errors.New("broken")
	for _, tt := range []struct {
		says   string
		change func(tmpl *x509.Certificate, pub *crypto.PublicKey) error
	}{
		{"key usage", func(c *x509.Certificate, _ *crypto.PublicKey) error {
			c.KeyUsage = x509.KeyUsageDigitalSignature
			return nil
		}},
		{"CA certificate", func(c *x509.Certificate, _ *crypto.PublicKey) error { c.IsCA = true; return nil }},
		{"valid from", func(c *x509.Certificate, _ *crypto.PublicKey) error { c.NotAfter = epoch; return nil }},
		{"another key", func(_ *x509.Certificate, p *crypto.PublicKey) error { *p = ca.Key.Public(); return nil }},
		{"having the certificate signed: broken", func(*x509.Certificate, *crypto.PublicKey) error { return broken }},
	} {
		dir := t.TempDir()
		_, _, err := RA(t.Context(), signFunc{ca, func(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
			if err := tt.change(tmpl, &pub); err != nil {
				return nil, err
			}
			return ca.Sign(ctx, tmpl, pub)
		}}, dir, RAOptions{Time: at(0)})
		checkText(t, err, tt.says)
		onlyFiles(t, dir)
	}
	dir := t.TempDir()
	_, _, err := RA(t.Context(), signFunc{ca, other.Sign}, dir, RAOptions{Time: at(0)})
	checkText(t, err, "not issued by")
	onlyFiles(t, dir)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := RA(ctx, ca, dir, RAOptions{Time: at(0)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	onlyFiles(t, dir)

	leaf, _ := getRA(t, ca, dir, 0, RAOptions{})
	if _, _, err := RA(t.Context(), leaf, t.TempDir(), RAOptions{Time: at(0)}); !errors.Is(err, backend.ErrMismatch) {
		t.Errorf("under a certificate that is no CA's: %v", err)
	}
	if _, _, err := RA(t.Context(), &scep.Identity{}, t.TempDir(), RAOptions{}); err == nil {
		t.Error("without a CA certificate: no error")
	}
}

func TestRADirectory(t *testing.T) {
	ca := testCA(t, CAOptions{})
	dir := t.TempDir()
	first, _ := getRA(t, ca, dir, 0, RAOptions{})
	file := filepath.Join(dir, "ra-000001.pem")

	// Left by crashes, or put there by people: not looked at.
	for _, name := range []string{".ra-000002.pem-123.tmp", "ra-.pem", "ra-2.pem", "ra-000003.key", "ra-000002.pem~", "notes.txt", "ra--00001.pem", "ra-99999999999999999999.pem"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half a k"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if ra, past := getRA(t, ca, dir, 0, RAOptions{}); !same(ra, first) || len(past) != 0 {
		t.Error("other files are in the way")
	}

	second := filepath.Join(dir, "ra-000002.pem")
	for _, tt := range []struct {
		data []byte
		mode fs.FileMode
		says string
	}{
		{nil, 0o600, "is empty"},
		{must(os.ReadFile(file))[:1500], 0o600, "cut off"},
		{must(os.ReadFile(file)), 0o644, "chmod 600"},
		{join(pkcs8(ecTestKey()), encodeCerts(selfSigned(t, "x", ecTestKey()))), 0o600, "cannot decrypt"},
	} {
		if tt.mode != 0o600 && runtime.GOOS == "windows" {
			continue
		}
		if err := errors.Join(os.WriteFile(second, tt.data, 0o600), os.Chmod(second, tt.mode)); err != nil {
			t.Fatal(err)
		}
		_, _, err := RA(t.Context(), ca, dir, RAOptions{Time: at(0)})
		checkText(t, err, tt.says)
		checkText(t, err, "ra-000002.pem")
		if err := os.Remove(second); err != nil {
			t.Fatal(err)
		}
	}

	_, _, err := RA(t.Context(), ca, file, RAOptions{Time: at(0)})
	checkText(t, err, "is not a directory")
	_, _, err = RA(t.Context(), ca, filepath.Join(dir, "a", "b"), RAOptions{Time: at(0)})
	checkText(t, err, "making the directory")
	if runtime.GOOS != "windows" {
		if err := os.Chmod(dir, 0o770); err != nil {
			t.Fatal(err)
		}
		_, _, err = RA(t.Context(), ca, dir, RAOptions{Time: at(0)})
		checkText(t, err, "chmod 700")
	}
}

func TestRAConcurrent(t *testing.T) {
	ca := testCA(t, CAOptions{})
	for name, link := range map[string]func(string, string) error{"link": os.Link, "no links": noLink} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					r := &raDir{dir: dir, ca: ca, chain: ca.Certificates, now: epoch, link: link, o: backend.RAOptions{Validity: day, Time: at(0)}}
					if err := r.issue(t.Context(), 1); err != nil && !errors.Is(err, fs.ErrExist) {
						t.Errorf("%d: %v", i, err)
					}
					if _, err := r.read(t.Context()); err != nil {
						t.Errorf("%d: %v", i, err)
					}
				})
			}
			wg.Wait()
			onlyFiles(t, dir, "ra-000001.pem")
		})
	}
	// All at once, through a renewal: all get one, each time the same.
	dir := t.TempDir()
	for _, after := range []time.Duration{0, 300 * day} {
		got := make([]*scep.Identity, 3)
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() { got[i], _, _ = RA(t.Context(), ca, dir, RAOptions{Time: at(after)}) })
		}
		wg.Wait()
		for _, id := range got {
			if id == nil || !same(id, got[0]) {
				t.Fatalf("after %v they have different identities", after)
			}
		}
	}
	onlyFiles(t, dir, "ra-000001.pem", "ra-000002.pem")
}

func TestRAProcesses(t *testing.T) {
	home := t.TempDir()
	chain, key := filepath.Join(home, "ca.pem"), filepath.Join(home, "ca.key")
	if _, err := CreateCA(chain, key, CAOptions{KeyType: backend.P256}); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{0, 300 * day} {
		out := make([]string, 3)
		var wg sync.WaitGroup
		for i := range out {
			wg.Go(func() {
				b, err := child(t.Context(), "ra", home, after.String()).CombinedOutput()
				if err != nil {
					t.Errorf("%v: %s", err, b)
				}
				out[i] = string(b)
			})
		}
		wg.Wait()
		slices.Sort(out)
		if out[0] == "" || len(slices.Compact(out)) != 1 {
			t.Errorf("after %v they have different identities: %q", after, out)
		}
	}
	onlyFiles(t, filepath.Join(home, "ra"), "ra-000001.pem", "ra-000002.pem")
}

// child returns the test binary as another program; see TestMain.
func child(ctx context.Context, what, home, after string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, must(os.Executable()))
	cmd.Env = append(os.Environ(), "FILE_TEST_CHILD="+what, "FILE_TEST_HOME="+home, "FILE_TEST_AFTER="+after)
	return cmd
}

func TestMain(m *testing.M) {
	home := os.Getenv("FILE_TEST_HOME")
	chain, key := filepath.Join(home, "ca.pem"), filepath.Join(home, "ca.key")
	switch os.Getenv("FILE_TEST_CHILD") {
	case "create":
		must(CreateCA(chain, key, CAOptions{KeyType: backend.P256}))
	case "ra":
		after := must(time.ParseDuration(os.Getenv("FILE_TEST_AFTER")))
		ra, past, err := RA(context.Background(), must(Open(chain, key)), filepath.Join(home, "ra"),
			RAOptions{Time: func() time.Time { return time.Now().Add(after) }})
		if err != nil {
			panic(err)
		}
		fmt.Printf("%x with %d past", ra.Certificate().SerialNumber, len(past))
	default:
		m.Run()
	}
}
