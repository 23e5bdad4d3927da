package cms

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// openssl runs `openssl cms` on files that it makes.
type openssl struct {
	t   *testing.T
	dir string
}

func newOpenSSL(t *testing.T) *openssl {
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	o := &openssl{t, t.TempDir()}
	for name, id := range map[string]*identity{"rsa": rsaID(), "ec": ecID()} {
		o.write(name+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: id.cert.Raw}))
		o.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(id.key))}))
	}
	return o
}

func (o *openssl) path(name string) string { return filepath.Join(o.dir, name) }

func (o *openssl) write(name string, b []byte) {
	if err := os.WriteFile(o.path(name), b, 0o600); err != nil {
		o.t.Fatal(err)
	}
}

// run gives in to openssl and returns what comes out. Arguments that name a file of o are
// replaced by its path.
func (o *openssl) run(in []byte, args string) ([]byte, error) {
	list := strings.Fields(args)
	for i, a := range list {
		if strings.HasSuffix(a, ".crt") || strings.HasSuffix(a, ".key") {
			list[i] = o.path(a)
		}
	}
	o.write("in", in)
	os.Remove(o.path("out"))
	list = slices.Concat([]string{"cms"}, list, []string{"-binary", "-in", o.path("in"), "-out", o.path("out")})
	if msg, err := exec.CommandContext(o.t.Context(), "openssl", list...).CombinedOutput(); err != nil {
		return nil, errors.New(string(msg))
	}
	return os.ReadFile(o.path("out"))
}

var opensslContent = bytes.Repeat([]byte("some content that is longer than one block\x00\r\n"), 300)

func TestOpenSSLReadsMessage(t *testing.T) {
	o := newOpenSSL(t)
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		for _, id := range []*identity{rsaID(), ecID()} {
			if id == ecID() && hash == crypto.SHA1 {
				continue
			}
			for _, content := range [][]byte{opensslContent, {}} {
				der, err := SignMessage(t.Context(), content, requestAttributes(), id.c, id.key, hash, id.cert.Raw)
				if err != nil {
					t.Fatal(err)
				}
				out, err := o.run(der, "-verify -inform DER -noverify")
				if err != nil || !bytes.Equal(out, content) {
					t.Errorf("%v %v: %v", id.cert.Subject, hash, err)
				}
			}
		}
	}
}

func TestOpenSSLReadsEnvelope(t *testing.T) {
	o := newOpenSSL(t)
	for _, c := range []Cipher{TripleDES, AES128, AES192, AES256} {
		der := must(Encrypt(opensslContent, c, rsaID().c, rsaID().key.Public()))
		out, err := o.run(der, "-decrypt -inform DER -recip rsa.crt -inkey rsa.key")
		if err != nil || !bytes.Equal(out, opensslContent) {
			t.Errorf("%v: %v", c, err)
		}
	}
}

func TestOpenSSLReadsCertsOnly(t *testing.T) {
	o := newOpenSSL(t)
	out, err := o.run(must(CertsOnly(rsaID().cert.Raw, ecID().cert.Raw)), "-cmsout -print -inform DER")
	if err != nil || bytes.Count(out, []byte("d.certificate:")) != 2 {
		t.Errorf("%v: %s", err, out)
	}
}

func TestReadsOpenSSLMessage(t *testing.T) {
	o := newOpenSSL(t)
	for _, test := range []struct {
		args   string
		sigOID string
		want   result
	}{
		{"-signer rsa.crt -inkey rsa.key -md sha256", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha1", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha512 -stream", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha256 -keyid", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha256 -cades", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha256 -certfile ec.crt", "1.2.840.113549.1.1.1", good},
		{"-signer rsa.crt -inkey rsa.key -md sha256 -keyopt rsa_padding_mode:pss", "1.2.840.113549.1.1.10", good},
		{"-signer rsa.crt -inkey rsa.key -md sha384 -keyopt rsa_padding_mode:pss -keyopt rsa_pss_saltlen:20", "1.2.840.113549.1.1.10", good},
		{"-signer rsa.crt -inkey rsa.key -md sha1 -keyopt rsa_padding_mode:pss -keyopt rsa_pss_saltlen:20", "1.2.840.113549.1.1.10", good},
		{"-signer rsa.crt -inkey rsa.key -md sha256 -keyopt rsa_padding_mode:pss -keyopt rsa_mgf1_md:sha1", "1.2.840.113549.1.1.10", unsupported},
		{"-signer ec.crt -inkey ec.key -md sha256", "1.2.840.10045.4.3.2", good},
		{"-signer ec.crt -inkey ec.key -md sha512 -stream", "1.2.840.10045.4.3.4", good},
		{"-signer rsa.crt -inkey rsa.key -nocerts", "1.2.840.113549.1.1.1", unverified},
		{"-signer rsa.crt -inkey rsa.key -noattr", "", malformed},
		{"-signer rsa.crt -inkey rsa.key -signer ec.crt -inkey ec.key", "", malformed},
	} {
		t.Run(test.args, func(t *testing.T) {
			out, err := o.run(opensslContent, "-sign -outform DER -nodetach "+test.args)
			if err != nil {
				t.Fatal(err)
			}
			m, err := parseAndVerify(out)
			if resultOf(err) != test.want {
				t.Fatal(err)
			}
			if m != nil && (!bytes.Equal(m.Content, opensslContent) || m.SignatureOID.String() != test.sigOID || m.MessageType != "") {
				t.Errorf("%d bytes of content, %v", len(m.Content), m.SignatureOID)
			}
		})
	}
}

func TestReadsOpenSSLEnvelope(t *testing.T) {
	o := newOpenSSL(t)
	for _, test := range []struct {
		args   string
		cipher Cipher
	}{
		{"-aes128 -recip rsa.crt", AES128},
		{"-aes192 -recip rsa.crt", AES192},
		{"-aes256 -stream -recip rsa.crt", AES256},
		{"-des3 -recip rsa.crt", TripleDES},
		{"-aes128 -recip rsa.crt -keyopt rsa_padding_mode:oaep", AES128},
		{"-aes128 -recip rsa.crt -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256", AES128},
		{"-aes128 -recip rsa.crt -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256 -keyopt rsa_mgf1_md:sha1", AES128},
		{"-aes128 -recip rsa.crt -keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha512 -keyopt rsa_oaep_label:0123abcd", AES128},
		{"-aes128 -keyid -recip rsa.crt", AES128},
		{"-aes128 -keyid -stream -recip rsa.crt", AES128},
		{"-aes128 -recip ec.crt -recip rsa.crt", AES128},
		{"-aes128 -pwri_password secret -recip rsa.crt", AES128},
		{"-aes128 -secretkey 000102030405060708090a0b0c0d0e0f -secretkeyid 01 -recip rsa.crt", AES128},
	} {
		t.Run(test.args, func(t *testing.T) {
			out, err := o.run(opensslContent, "-encrypt -outform DER "+test.args)
			if err != nil {
				t.Fatal(err)
			}
			e, err := ParseEnvelope(out)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := open(e, rsaKey())
			if err != nil || !bytes.Equal(plain, opensslContent) || e.Cipher != test.cipher || len(e.Recipients) != 1 {
				t.Errorf("%v, %d recipients, %v", e.Cipher, len(e.Recipients), err)
			}
		})
	}
	t.Run("AuthEnvelopedData", func(t *testing.T) {
		out, err := o.run(opensslContent, "-encrypt -outform DER -aes-128-gcm -recip rsa.crt")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseEnvelope(out); !errors.Is(err, ErrSyntax) {
			t.Error(err)
		}
	})
}

// openssl is an independent reading of padding and key transport together, and of BER that we
// did not write.
func TestReadsOpenSSLNested(t *testing.T) {
	o := newOpenSSL(t)
	inner, err := o.run(opensslContent, "-encrypt -outform DER -stream -aes128 -recip rsa.crt")
	if err != nil {
		t.Fatal(err)
	}
	outer, err := o.run(inner, "-sign -outform DER -nodetach -stream -signer rsa.crt -inkey rsa.key -md sha256")
	if err != nil {
		t.Fatal(err)
	}
	m := mustVerify(t, outer)
	if !bytes.Equal(m.Content, inner) {
		t.Error("the content was changed")
	}
	if plain, err := open(must(ParseEnvelope(m.Content)), rsaKey()); err != nil || !bytes.Equal(plain, opensslContent) {
		t.Error(err)
	}
}
