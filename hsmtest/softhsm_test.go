//go:build cgo

package hsmtest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	"github.com/scepkit/scepkit/hsmtest"
)

func TestSoftHSM(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "ca", "01", "rsa:2048", "--usage-sign")
	s := open(t, k)
	s.works(t, "ca")

	info, err := s.GetTokenInfo(s.slot)
	must(t, err)
	if info.SerialNumber != k.Serial {
		t.Errorf("the serial number is %q, want %q", k.Serial, info.SerialNumber)
	}
	fi, err := os.Stat(k.PINFile())
	must(t, err)
	pin, err := os.ReadFile(k.PINFile())
	must(t, err)
	if fi.Mode() != 0o600 || string(pin) != k.PIN+"\n" {
		t.Errorf("the PIN file has mode %v and holds %q", fi.Mode(), pin)
	}
	if _, err := s.decrypt(s.one(t, pkcs11.CKO_PRIVATE_KEY, "ca"), make([]byte, 256)); err == nil {
		t.Error("a key made to sign decrypts")
	}
}

func TestSoftHSMURI(t *testing.T) {
	k := &hsmtest.Token{Module: "/a b/lib;1.so", Label: "my token&?"}
	want := "pkcs11:token=my%20token%26%3F;object=a%2Bb?module-path=/a%20b/lib%3B1.so&pin-source=file:"
	if got := k.URI("a+b"); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// Two Tokens are two devices: a login to one, or its end, is nothing to the other.
func TestSoftHSMApart(t *testing.T) {
	a, b := hsmtest.SoftHSM(t), hsmtest.SoftHSM(t)
	a.Generate(t, "a", "01", "rsa:2048")
	b.Generate(t, "b", "01", "rsa:2048")
	sa, sb := open(t, a), open(t, b)
	must(t, sb.Finalize())
	sa.works(t, "a")
	must(t, sb.Initialize()) // reads the environment again
	sb = login(t, sb.Ctx, b)
	sb.works(t, "b")
	if len(sb.find(t, pkcs11.CKO_PRIVATE_KEY, "a")) != 0 {
		t.Error("one token holds the other's key")
	}
}

func TestSoftHSMChangePIN(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	old := k.PIN
	k.ChangePIN(t, "000111222")
	s := open(t, k)
	must(t, s.Logout(s.h))
	rv(t, s.Login(s.h, pkcs11.CKU_USER, old), pkcs11.CKR_PIN_INCORRECT)
	must(t, s.Login(s.h, pkcs11.CKU_USER, "000111222"))
}

func TestSoftHSMHide(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "ca", "01", "rsa:2048")
	ctx := load(t, k.Module)
	must(t, ctx.Finalize())
	k.Hide(t)
	must(t, ctx.Initialize())
	if _, err := slot(ctx, k); err == nil {
		t.Error("a hidden token is listed")
	}
	must(t, ctx.Finalize())
	k.Restore(t)
	must(t, ctx.Initialize())
	login(t, ctx, k).works(t, "ca")
}

// Odd tokens can be made: copies of an id and label, a key without its public half, a wrong one.
func TestTokenObjects(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	k.Generate(t, "twice", "01", "rsa:2048", "--usage-sign")
	k.Generate(t, "twice", "01", "EC:prime256v1", "--usage-sign")
	k.Generate(t, "lonely", "02", "rsa:2048")
	k.Delete(t, "pubkey", "lonely")
	k.Generate(t, "asks", "03", "rsa:2048", "--always-auth")
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(other)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(other.Public())
	must(t, err)
	k.Import(t, "privkey", "imported", "04", private, "--usage-sign")
	k.Import(t, "pubkey", "lonely", "02", public)

	s := open(t, k)
	for _, want := range []struct {
		label           string
		private, public int
	}{{"twice", 2, 2}, {"lonely", 1, 1}, {"asks", 1, 1}, {"imported", 1, 0}} {
		private := len(s.find(t, pkcs11.CKO_PRIVATE_KEY, want.label))
		public := len(s.find(t, pkcs11.CKO_PUBLIC_KEY, want.label))
		if private != want.private || public != want.public {
			t.Errorf("%s: got %d private keys and %d public, want %d and %d", want.label, private, public, want.private, want.public)
		}
	}
	_, err = s.sign(s.one(t, pkcs11.CKO_PRIVATE_KEY, "asks"), "message")
	rv(t, err, pkcs11.CKR_USER_NOT_LOGGED_IN)
}

// A child process reaches the token with Env alone.
func TestTokenEnv(t *testing.T) {
	k := hsmtest.SoftHSM(t)
	cmd := exec.Command("pkcs11-tool", "--module", k.Module, "--list-token-slots")
	cmd.Env = k.Env()
	out, err := cmd.CombinedOutput()
	must(t, err)
	if !strings.Contains(string(out), k.Label) {
		t.Errorf("the token is not among\n%s", out)
	}
}
