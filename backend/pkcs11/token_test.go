//go:build cgo

package pkcs11_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/backendtest"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/hsmtest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// config returns the configuration for a token.
func config(t testing.TB, k *hsmtest.Token) pkcs11.Config {
	return pkcs11.Config{Module: k.Module, Token: k.Label, PIN: scep.NewSecret(k.PIN), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// open opens a token for the length of a test.
func open(t testing.TB, c pkcs11.Config) *pkcs11.Token {
	t.Helper()
	token, err := pkcs11.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}

// identity makes a key with a self-signed certificate in the token.
func identity(t testing.TB, k *hsmtest.Token, label string, spec backend.Spec) *x509.Certificate {
	t.Helper()
	key := must(backend.Create(t.Context(), k.URI(label), spec, pkcs11.Driver{}))
	defer key.Close()
	cert := must(backend.SelfSign(t.Context(), key.Key, backend.CAOptions{Subject: pkix.Name{CommonName: label}}))
	if err := backend.Import(t.Context(), k.URI(label), []*x509.Certificate{cert}, false, pkcs11.Driver{}); err != nil {
		t.Fatal(err)
	}
	return cert
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestIdentity(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.RSA3072, backend.P256, backend.P384} {
		t.Run(kind.String(), func(t *testing.T) {
			rsa := kind == backend.RSA2048 || kind == backend.RSA3072
			identity(t, token, kind.String(), backend.Spec{KeyType: kind, Decrypt: rsa})
			tokens := map[*scep.Identity]*pkcs11.Token{}
			backendtest.TestIdentity(t, backendtest.Harness{
				Open: func(t *testing.T) *scep.Identity {
					opened := open(t, config(t, token))
					id := must(opened.Identity(t.Context(), kind.String()))
					tokens[id] = opened
					return id
				},
				LacksOAEP: []crypto.Hash{crypto.SHA256},
				Close:     func(t *testing.T, id *scep.Identity) { must(0, tokens[id].Close()) },
				Pull: func(t *testing.T) func() {
					token.Hide(t)
					return func() { token.Restore(t) }
				},
			})
		})
	}
}

// Other makers' tokens, and one that is reached over a socket.
func TestIdentityElsewhere(t *testing.T) {
	t.Run("NSS", func(t *testing.T) { suite(t, hsmtest.NSS(t).URI("key"), nil) })
	t.Run("p11-kit remote", func(t *testing.T) {
		r := hsmtest.Remote(t, hsmtest.SoftHSM(t))
		suite(t, r.URI("key"), func(*testing.T) func() { r.Kill(); return r.Start }, crypto.SHA256)
	})
}

// TestYourToken holds a token of yours to the promises of package backend:
//
//	HSMTEST_URI='pkcs11:token=T;object=scepkit-test?module-path=/M.so&pin-source=file:/PIN' go test -run YourToken -v ./backend/pkcs11
//
// If there is no key of that label it is made, and stays there. HSMTEST_LACKS=OAEP-SHA256 is for
// tokens that cannot do that.
//
// opencryptoki's software token (Debian's opencryptoki), as root, with the PIN 12345678:
//
//	pkcsslotd; printf 'swtok1\n' | pkcsconf -I -c 3 -S 87654321
//	pkcsconf -P -c 3 -S 87654321 -n 76543210; pkcsconf -u -c 3 -S 76543210 -n 12345678
//	# module-path=/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0, token=swtok1
//
// tpm2-pkcs11 with swtpm (Debian's libtpm2-pkcs11-1 libtpm2-pkcs11-tools libtss2-tcti-tabrmd0
// libtss2-tcti-swtpm0 tpm2-abrmd dbus), with the PIN 123456:
//
//	swtpm socket --tpm2 --tpmstate dir=$D --server type=tcp,port=22321 --ctrl type=tcp,port=22322 --flags not-need-init,startup-clear &
//	export DBUS_SESSION_BUS_ADDRESS=$(dbus-daemon --session --fork --print-address=1)
//	tpm2-abrmd --session --allow-root --flush-all --tcti=swtpm:host=127.0.0.1,port=22321 &
//	export TPM2_PKCS11_STORE=$S TPM2_PKCS11_TCTI=tabrmd:bus_name=com.intel.tss2.Tabrmd,bus_type=session
//	export TPM2TOOLS_TCTI=$TPM2_PKCS11_TCTI
//	tpm2_ptool init; tpm2_ptool addtoken --pid=1 --label=tpmtok --userpin=123456 --sopin=654321
//	# module-path=/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1, token=tpmtok
func TestYourToken(t *testing.T) {
	uri := os.Getenv("HSMTEST_URI")
	if uri == "" {
		t.Skip("HSMTEST_URI names no key")
	}
	var lacks []crypto.Hash
	if os.Getenv("HSMTEST_LACKS") == "OAEP-SHA256" {
		lacks = append(lacks, crypto.SHA256)
	}
	suite(t, uri, nil, lacks...)
}

// suite runs backendtest on a key, which it makes if need be.
func suite(t *testing.T, uri string, pull func(*testing.T) func(), lacksOAEP ...crypto.Hash) {
	driver := pkcs11.Driver{Timeout: 20 * time.Second, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	key, err := backend.OpenKey(t.Context(), uri, driver)
	if errors.Is(err, backend.ErrNotFound) {
		key, err = backend.Create(t.Context(), uri, backend.Spec{Decrypt: true}, driver)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Log(key.Description)
	cert := must(backend.SelfSign(t.Context(), key.Key, backend.CAOptions{}))
	must(0, key.Close())
	opened := map[*scep.Identity]*backend.Key{}
	backendtest.TestIdentity(t, backendtest.Harness{
		Open: func(t *testing.T) *scep.Identity {
			key := must(backend.OpenKey(t.Context(), uri, driver))
			t.Cleanup(func() { must(0, key.Close()) })
			id := &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key.Key}
			opened[id] = key
			return id
		},
		LacksOAEP: lacksOAEP,
		Pull:      pull,
		Close:     func(_ *testing.T, id *scep.Identity) { must(0, opened[id].Close()) },
	})
}

// All that is wrong with a token or key is found at start, with an error that names it and the
// way out, and a PIN is sent at most once.
func TestRefused(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	twin := hsmtest.SoftHSM(t)
	second := exec.Command("softhsm2-util", "--init-token", "--free", "--label", twin.Label, "--so-pin", "5678", "--pin", "1234")
	if out, err := second.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	good := identity(t, token, "good", backend.Spec{Decrypt: true})
	token.Generate(t, "double", "01", "rsa:2048")
	token.Generate(t, "double", "02", "rsa:2048")
	token.Generate(t, "same", "03", "EC:prime256v1")
	token.Generate(t, "same", "03", "EC:prime256v1")
	token.Generate(t, "lonely", "04", "EC:prime256v1")
	token.Delete(t, "pubkey", "lonely")
	token.Generate(t, "swapped", "05", "EC:prime256v1")
	token.Delete(t, "pubkey", "swapped")
	token.Import(t, "pubkey", "swapped", "05", must(x509.MarshalPKIXPublicKey(sceptest.P256().Public())))
	token.Generate(t, "foreign", "06", "rsa:2048")
	token.Import(t, "cert", "foreign", "06", good.Raw)
	token.Generate(t, "bare", "07", "rsa:2048")
	token.Generate(t, "two certificates", "08", "rsa:2048")
	token.Generate(t, "small", "09", "rsa:1024")
	token.Generate(t, "always", "0a", "rsa:2048", "--always-auth")
	token.Import(t, "cert", "only a certificate", "0b", sceptest.NewCA(t).Certificate().Raw)
	two := open(t, config(t, token))
	signer := must(backend.OpenKey(t.Context(), token.URI("two certificates"), pkcs11.Driver{}))
	for i := range 2 {
		cert := must(backend.SelfSign(t.Context(), signer.Key, backend.CAOptions{Subject: pkix.Name{CommonName: fmt.Sprint(i)}}))
		token.Import(t, "cert", "two certificates", "08", cert.Raw)
	}
	signer.Close()
	two.Close()
	dir := t.TempDir()
	goodPEM := writePEM(t, dir, "good.pem", good)
	otherPEM := writePEM(t, dir, "other.pem", sceptest.NewCA(t).Certificate())
	writePEM(t, dir, "order.pem", sceptest.NewCA(t).Certificate(), good)
	writePEM(t, dir, "empty.pem")
	write(t, dir, "text.so", "not a library")
	whole := string(must(os.ReadFile(goodPEM)))
	write(t, dir, "cut.pem", whole+whole[:len(whole)/2])

	for _, tt := range []struct {
		name   string
		change func(c *pkcs11.Config)
		is     error
		says   string
	}{
		{"module missing", func(c *pkcs11.Config) { c.Module = "/nowhere/module.so" }, backend.ErrNotFound, `no module "/nowhere/module.so"; install it`},
		{"module that is a folder", func(c *pkcs11.Config) { c.Module = dir }, backend.ErrNotFound, "is not a file"},
		{"module that is none", func(c *pkcs11.Config) { c.Module = filepath.Join(dir, "text.so") }, backend.ErrUnsupported, "cannot be loaded as a PKCS#11 module; check it with `pkcs11-tool"},
		{"no module", func(c *pkcs11.Config) { c.Module = "" }, nil, "Config.Module is required"},
		{"no token", func(c *pkcs11.Config) { c.Token = "" }, nil, "one of Config.Token, Config.Serial and Config.Slot is required"},
		{"negative", func(c *pkcs11.Config) { c.Sessions = -1 }, nil, "Config.Sessions is negative"},
		{"token missing", func(c *pkcs11.Config) { c.Token = "nobody" }, backend.ErrNotFound, `token "nobody" not found in slot list of`},
		{"token with another serial number", func(c *pkcs11.Config) { c.Serial = twin.Serial }, backend.ErrNotFound, "correct the name"},
		{"two tokens of that name", func(c *pkcs11.Config) { c.Token = twin.Label }, backend.ErrAmbiguous, "name the serial number as well"},
		{"PIN wrong", func(c *pkcs11.Config) { c.PIN = scep.NewSecret("987654") }, backend.ErrPIN, "refused the PIN. It is not tried again"},
		{"PIN missing", func(c *pkcs11.Config) { c.PIN = scep.Secret{} }, backend.ErrPIN, "wants a PIN and none was given"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := config(t, token)
			tt.change(&c)
			opened, err := pkcs11.Open(c)
			if err == nil {
				opened.Close()
			}
			refused(t, err, tt.is, tt.says)
		})
	}

	opened := open(t, config(t, token))
	t.Run("another PIN while open", func(t *testing.T) {
		c := config(t, token)
		c.PIN = scep.NewSecret("another")
		_, err := pkcs11.Open(c)
		refused(t, err, backend.ErrPIN, "open already in this program with another PIN")
	})
	for _, tt := range []struct {
		key  string
		pem  []string
		is   error
		says string
	}{
		{"double", nil, backend.ErrAmbiguous, `key "double" is more than one: "double" id=`},
		{"same", nil, backend.ErrAmbiguous, "is more than one"},
		{"id=03", nil, backend.ErrAmbiguous, "is more than one"},
		{"nobody", nil, backend.ErrNotFound, `no private key "nobody" in the token (there are`},
		{"id=ffff", nil, backend.ErrNotFound, "no private key id=ffff"},
		{"id=xyz", nil, nil, "in hexadecimal"},
		{"", nil, nil, "no name of a key"},
		{"only a certificate", nil, backend.ErrNotFound, "there is a certificate"},
		{"lonely", nil, backend.ErrNotFound, "no public key object and no certificate"},
		{"swapped", nil, backend.ErrMismatch, "the public key is that of another key"},
		{"foreign", nil, backend.ErrMismatch, "has the id of the key"},
		{"bare", nil, backend.ErrNotFound, `no certificate for the key "bare"`},
		{"two certificates", nil, backend.ErrAmbiguous, "more than one certificate"},
		{"small", nil, backend.ErrUnsupported, "1024 bits"},
		{"always", nil, backend.ErrUnsupported, "CKA_ALWAYS_AUTHENTICATE"},
		{"good", []string{otherPEM}, backend.ErrMismatch, "does not belong to the first certificate"},
		{"good", []string{filepath.Join(dir, "order.pem")}, backend.ErrMismatch, "put that one first"},
		{"good", []string{filepath.Join(dir, "empty.pem")}, backend.ErrNotFound, "no CERTIFICATE block"},
		{"good", []string{filepath.Join(dir, "cut.pem")}, nil, "cut off or damaged"},
		{"good", []string{filepath.Join(dir, "missing.pem")}, backend.ErrNotFound, "no certificate file"},
	} {
		t.Run("key "+tt.key, func(t *testing.T) {
			_, err := opened.Identity(t.Context(), tt.key, tt.pem...)
			refused(t, err, tt.is, tt.says)
		})
	}
	if id := must(opened.Identity(t.Context(), "good", goodPEM)); !id.Certificate().Equal(good) {
		t.Error("the certificate from the file is another")
	}
	if s := opened.Stats(); s.Logins != 1 || s.Overdue != 0 {
		t.Errorf("%+v", s)
	}
}

// refused wants an error of a kind that says something.
func refused(t *testing.T, err, is error, says string) {
	t.Helper()
	switch {
	case err == nil:
		t.Error("no error")
	case !strings.HasPrefix(err.Error(), "pkcs11: ") && !strings.HasPrefix(err.Error(), "backend: "):
		t.Errorf("the error does not say whose it is: %v", err)
	case is != nil && !errors.Is(err, is):
		t.Errorf("%v is not: %v", err, is)
	case !strings.Contains(err.Error(), says):
		t.Errorf("%v\ndoes not say: %s", err, says)
	}
}

// A key that only signs makes no RA, and New says so.
func TestSignOnlyRA(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	identity(t, token, "signs", backend.Spec{})
	ca := sceptest.NewCA(t, sceptest.P256())
	key := must(backend.OpenKey(t.Context(), token.URI("signs"), pkcs11.Driver{}))
	defer key.Close()
	ra := sceptest.NewRA(t, ca, key.Key)
	_, err := scep.New(sceptest.Fill(t, scep.Config{CA: ca, RA: ra}))
	if err == nil || !strings.Contains(err.Error(), "Config.RA") || !strings.Contains(err.Error(), "can sign but not decrypt; use a key that may decrypt") {
		t.Error(err)
	}
	if _, ok := key.Key.(scep.Unwrapper); ok {
		t.Error("a key that only signs has UnwrapKey")
	}
	if _, ok := key.Key.(crypto.Decrypter); ok {
		t.Error("a key that only signs has Decrypt")
	}
}

// What is made cannot leave the token, and may do only what it is for.
func TestCreate(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	key := must(backend.Create(t.Context(), token.URI("ca"), backend.Spec{}, pkcs11.Driver{}))
	defer key.Close()
	got := map[string]string{}
	for _, a := range key.Description {
		got[a.Name] = a.Value
	}
	for name, want := range map[string]string{
		"key": "RSA-2048", "token": token.Label, "token serial": token.Serial, "CKA_LABEL": "ca",
		"CKA_TOKEN": "true", "CKA_PRIVATE": "true", "CKA_SENSITIVE": "true", "CKA_EXTRACTABLE": "false",
		"CKA_ALWAYS_SENSITIVE": "true", "CKA_NEVER_EXTRACTABLE": "true", "CKA_LOCAL": "true", "CKA_MODIFIABLE": "false",
		"CKA_SIGN": "true", "CKA_DECRYPT": "false", "CKA_UNWRAP": "false",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if len(got["CKA_ID"]) != 32 {
		t.Errorf("id is %q, want 16 bytes", got["CKA_ID"])
	}
	for what, uri := range map[string]string{
		"label": token.URI("ca"),
		"id":    strings.Replace(token.URI("other"), "?", ";id="+percent(got["CKA_ID"])+"?", 1),
	} {
		_, err := backend.Create(t.Context(), uri, backend.Spec{}, pkcs11.Driver{})
		if refused(t, err, fs.ErrExist, "nothing is overwritten"); errors.Is(err, backend.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}

	cert := must(backend.SelfSign(t.Context(), key.Key, backend.CAOptions{}))
	next := must(backend.SelfSign(t.Context(), key.Key, backend.CAOptions{}))
	uri := token.URI("ca")
	imports := func(certs []*x509.Certificate, replace bool) error {
		return backend.Import(t.Context(), uri, certs, replace, pkcs11.Driver{})
	}
	refused(t, imports([]*x509.Certificate{sceptest.NewCA(t).Certificate()}, false), backend.ErrMismatch, "does not belong")
	must(0, imports([]*x509.Certificate{cert}, false))
	must(0, imports([]*x509.Certificate{cert}, false)) // nothing to do
	refused(t, imports([]*x509.Certificate{next}, false), fs.ErrExist, "nothing is overwritten")
	must(0, imports([]*x509.Certificate{next}, true))
	opened := must(backend.Open(t.Context(), uri, pkcs11.Driver{}))
	if !opened.Certificate().Equal(next) {
		t.Error("the certificate was not replaced")
	}
	must(0, opened.Close())

	// A lost public key object does no harm.
	token.Generate(t, "ec", "77", "EC:secp384r1")
	uri = token.URI("ec")
	ec := must(backend.OpenKey(t.Context(), uri, pkcs11.Driver{}))
	must(0, imports([]*x509.Certificate{must(backend.SelfSign(t.Context(), ec.Key, backend.CAOptions{}))}, false))
	must(0, ec.Close())
	token.Delete(t, "pubkey", "ec")
	ec = must(backend.Open(t.Context(), uri, pkcs11.Driver{}))
	must(0, ec.Check(t.Context()))
	must(0, ec.Close())
	must(0, ec.Close())
}

// A chain is put together from the token's certificates.
func TestChain(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	root := sceptest.NewCA(t)
	key := must(backend.Create(t.Context(), token.URI("sub"), backend.Spec{KeyType: backend.P256}, pkcs11.Driver{}))
	defer key.Close()
	sub := sceptest.NewSubCA(t, root, key.Key)
	must(0, backend.Import(t.Context(), token.URI("sub"), sub.Certificates, false, pkcs11.Driver{}))
	id := must(open(t, config(t, token)).Identity(t.Context(), "sub"))
	if len(id.Certificates) != 2 || !id.Certificates[0].Equal(sub.Certificate()) || !id.Certificates[1].Equal(root.Certificate()) {
		t.Errorf("chain has %d certificates", len(id.Certificates))
	}
}

func TestDriver(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	cert := identity(t, token, "key", backend.Spec{})
	base, query, _ := strings.Cut(token.URI("key"), "?")
	module := "module-path=" + token.Module
	pin := "pin-source=file:" + token.PINFile()
	ask := pkcs11.Driver{PIN: func(_ context.Context, who string) (scep.Secret, error) {
		if !strings.Contains(who, token.Label) {
			t.Errorf("asked for the PIN of %s", who)
		}
		return scep.NewSecret(token.PIN), nil
	}}
	chain := writePEM(t, t.TempDir(), "chain.pem", cert)
	t.Setenv("TEST_PIN", token.PIN)
	credentials := t.TempDir()
	write(t, credentials, "pin", token.PIN)
	t.Setenv("CREDENTIALS_DIRECTORY", credentials)
	for _, tt := range []struct {
		uri    string
		driver pkcs11.Driver
		says   string
	}{
		{base + "?" + query, pkcs11.Driver{}, ""},
		{base + "?" + module, ask, ""},
		{base + "?" + module + "&pin-source=env:TEST_PIN", pkcs11.Driver{}, ""},
		{base + "?" + module + "&pin-source=credential:pin", pkcs11.Driver{}, ""},
		{base + "?" + pin, pkcs11.Driver{Module: token.Module}, ""},
		{base + ";serial=" + token.Serial + ";type=private;manufacturer=SoftHSM%20project;model=SoftHSM%20v2?" + query, pkcs11.Driver{}, ""},
		{base + "?" + query + "&chain=" + chain, pkcs11.Driver{}, ""},
		{base + "?" + query + "&chain=" + chain + ".no", pkcs11.Driver{}, "no certificate"},
		{base + ";type=cert?" + query, pkcs11.Driver{}, "a private key is wanted"},
		{base + ";slot-id=x?" + query, pkcs11.Driver{}, "not a number"},
		{base + ";colour=red?" + query, pkcs11.Driver{}, "colour"},
		{base + "?" + query + "&pin-value=1234", pkcs11.Driver{}, "pin-value"},
		{base + "?" + query + "&x=y", pkcs11.Driver{}, "x"},
		{"pkcs11:token=" + token.Label + "?" + query, pkcs11.Driver{}, "names no key"},
		{base + "?" + pin, pkcs11.Driver{}, "module-path"},
		{base + "?module-path=lib.so&" + pin, pkcs11.Driver{}, "not absolute"},
		{base + "?" + module + "&pin-source=file:/nowhere", pkcs11.Driver{}, "/nowhere"},
		{base + "?" + module, pkcs11.Driver{}, "wants a PIN"},
	} {
		key, err := backend.Open(t.Context(), tt.uri, tt.driver)
		if tt.says != "" {
			refused(t, err, nil, tt.says)
			if err == nil {
				key.Close()
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.uri, err)
			continue
		}
		must(0, key.Check(t.Context()))
		must(0, key.Close())
	}
}

// What is printed has no PIN in it.
func TestSecrets(t *testing.T) {
	token := hsmtest.SoftHSM(t)
	identity(t, token, "key", backend.Spec{Decrypt: true})
	opened := open(t, config(t, token))
	id := must(opened.Identity(t.Context(), "key"))
	for _, v := range []any{config(t, token), opened, id, *id, id.Key} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, token.PIN) {
				t.Errorf("%s of a %T shows the PIN", verb, v)
			}
		}
	}
	if _, ok := id.Key.Public().(*rsa.PublicKey); !ok {
		t.Errorf("key is %T", id.Key.Public())
	}
}

func writePEM(t *testing.T, dir, name string, certs ...*x509.Certificate) string {
	t.Helper()
	var b []byte
	for _, c := range certs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return write(t, dir, name, string(b))
}

func write(t *testing.T, dir, name, content string) string {
	t.Helper()
	name = filepath.Join(dir, name)
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// percent writes hexadecimal as a URI does.
func percent(digits string) string {
	var b strings.Builder
	for i := 0; i < len(digits); i += 2 {
		b.WriteString("%" + digits[i:i+2])
	}
	return b.String()
}
