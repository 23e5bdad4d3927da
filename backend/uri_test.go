package backend

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"maps"
	"math/big"
	"net/url"
	"strings"
	"testing"
)

func TestParseURI(t *testing.T) {
	type attrs = map[string]string
	for _, tt := range []struct {
		in   string
		want URI
	}{
		{"file:/etc/scep/ca.key", URI{Scheme: "file", Path: "/etc/scep/ca.key"}},
		{"file:///etc/scep/ca.key?chain=/etc/scep/ca.pem", URI{Scheme: "file", Path: "/etc/scep/ca.key", Query: attrs{"chain": "/etc/scep/ca.pem"}}},
		{"file://localhost/x", URI{Scheme: "file", Path: "/x"}},
		{"file://LocalHost", URI{Scheme: "file"}},
		{"FILE:ca.key", URI{Scheme: "file", Path: "ca.key"}},
		{"file:../a b+c%20d%3Fe%23f%25g;h=i&j", URI{Scheme: "file", Path: "../a b+c d?e#f%g;h=i&j"}},
		{"file:", URI{Scheme: "file"}},
		{"file:?", URI{Scheme: "file"}},
		{"file:/x?chain=a=b?c", URI{Scheme: "file", Path: "/x", Query: attrs{"chain": "a=b?c"}}},
		{"tpm:?handle=0x81010000", URI{Scheme: "tpm", Query: attrs{"handle": "0x81010000"}}},
		{"tpm:/etc/scep/ra.tpm?device=/dev/tpmrm0&chain=ra%2epem", URI{Scheme: "tpm", Path: "/etc/scep/ra.tpm", Query: attrs{"device": "/dev/tpmrm0", "chain": "ra.pem"}}},
		{"aws-kms:alias/ca?region=eu", URI{Scheme: "aws-kms", Path: "alias/ca", Query: attrs{"region": "eu"}}},
		{"pkcs11:", URI{Scheme: "pkcs11", Attributes: attrs{}}},
		{"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;id=%69%00%ff;object=a/b?pin-source=file:/run/pin", URI{Scheme: "pkcs11",
			Attributes: attrs{"token": "The Software PKCS#11 Softtoken", "id": "i\x00\xff", "object": "a/b"}, Query: attrs{"pin-source": "file:/run/pin"}}},
		{"pkcs11:object=a=b&c?module-path=/usr/lib/x;y.so", URI{Scheme: "pkcs11", Attributes: attrs{"object": "a=b&c"}, Query: attrs{"module-path": "/usr/lib/x;y.so"}}},
		{"pkcs11:?module-name=softhsm2", URI{Scheme: "pkcs11", Attributes: attrs{}, Query: attrs{"module-name": "softhsm2"}}},
	} {
		u, err := ParseURI(tt.in)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		if u.Scheme != tt.want.Scheme || u.Path != tt.want.Path || !maps.Equal(u.Attributes, tt.want.Attributes) || !maps.Equal(u.Query, tt.want.Query) {
			t.Errorf("%s is %+v", tt.in, u)
		}
		if (u.Attributes != nil) != (u.Scheme == "pkcs11") || u.String() != tt.in {
			t.Errorf("%s: attributes %v, text %s", tt.in, u.Attributes, u)
		}
	}
}

func TestParseURIRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                                    "write file:/etc",
		"/etc/scep/ca.key":                    "write file:/etc",
		":x":                                  "write file:/etc",
		"1x:y":                                "write file:/etc",
		"a b:c":                               "write file:/etc",
		"file://server/share":                 `the host "server"; a path has one slash`,
		"file://etc":                          `the host "etc"`,
		"file:/a%2":                           "of the form %2F; write %25",
		"file:/a%zz":                          "of the form %2F",
		"file:/a%00b":                         "control character in its path",
		"file:/a\nb":                          "control character in its path",
		"file:/a#b":                           "write %23",
		"file:/a?chain=b&chain=c":             "has chain twice",
		"file:/a?chain=":                      "chain without a value",
		"file:/a?chain":                       "not NAME=VALUE",
		"file:/a?=b":                          "not NAME=VALUE",
		"file:/a?b=c&":                        "not NAME=VALUE",
		"file:/a?x%20y=c":                     "not NAME=VALUE",
		"file:/a?chain=%0a":                   "control character in chain",
		"file:/a?chain=%x":                    "% in chain",
		"pkcs11:token=a;token=b":              "has token twice",
		"pkcs11:token=a;":                     "not NAME=VALUE",
		"pkcs11:token":                        "not NAME=VALUE",
		"pkcs11:id=":                          "id without a value",
		"pkcs11:id=%":                         "% in id",
		"pkcs11:/usr/lib/x.so":                "not NAME=VALUE",
		"pkcs11:token=a?module-path=/a%00.so": "control character in module-path",
	} {
		u, err := ParseURI(in)
		if err == nil || u != nil {
			t.Errorf("%q: %+v", in, u)
			continue
		}
		if !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "backend: ") {
			t.Errorf("%q: %v; should say %q", in, err, says)
		}
	}
}

func TestParseURIRefusesPIN(t *testing.T) {
	for _, in := range []string{
		"pkcs11:token=a?pin-value=s3cr3t", "pkcs11:pin-value=s3cr3t", "pkcs11:token=%zz?PIN-Value=s3cr3t", "pkcs11:token=a?%70in-value=s3cr3t",
		"pkcs11:token=a?pin%2dvalue%3Ds3cr3t", "pin-value=s3cr3t", "file:/x;pin-value=s3cr3t", "x pin-value=s3cr3t", "pkcs11:a;a?pin-value=x%&s3cr3t",
	} {
		_, err := ParseURI(in)
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "pin-source") {
			t.Errorf("%s: %v", in, err)
		}
		if err != nil && strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: the error repeats it: %v", in, err)
		}
	}
	for _, in := range []string{"pkcs11:pin=s3cr3t;s3cr3t", "pkcs11:s3cr3t", "file:/x?a=b&s3cr3t:"} {
		_, err := ParseURI(in)
		if err == nil || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestOnly(t *testing.T) {
	u, err := ParseURI("pkcs11:token=a;object=b?module-path=/x&pin-source=y")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		attributes, query []string
		says              string
	}{
		{[]string{"token", "object"}, []string{"module-path", "pin-source", "chain"}, ""},
		{[]string{"token"}, []string{"module-path", "pin-source"}, "object before the question mark, which its driver does not know; use token: "},
		{[]string{"token", "object"}, []string{"module-path"}, "pin-source after the question mark"},
		{nil, nil, "object before the question mark, which its driver does not know; nothing stands there"},
	} {
		err := u.Only(tt.attributes, tt.query)
		if tt.says == "" && err != nil {
			t.Error(err)
		}
		if tt.says != "" && (!errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.says)) {
			t.Errorf("%v; should say %q", err, tt.says)
		}
	}
}

func TestDescribe(t *testing.T) {
	for want, pub := range map[string]any{
		"RSA-2048":    &rsa.PublicKey{N: new(big.Int).Lsh(big.NewInt(1), 2047)},
		"ECDSA P-256": &ecdsa.PublicKey{Curve: elliptic.P256()},
		"ECDSA P-521": &ecdsa.PublicKey{Curve: elliptic.P521()},
		"Ed25519":     ed25519.PublicKey(make([]byte, 32)),
		"int":         1,
		"<nil>":       nil,
	} {
		if got := Describe(pub); got != want {
			t.Errorf("%q; should be %q", got, want)
		}
	}
}

func TestKeyTypes(t *testing.T) {
	for _, kind := range []KeyType{RSA2048, RSA3072, RSA4096, P256, P384} {
		if got, err := ParseKeyType(kind.String()); err != nil || got != kind {
			t.Errorf("%v: %v, %v", kind, got, err)
		}
	}
	if got := KeyType(77).String(); got != "KeyType(77)" {
		t.Error(got)
	}
	if _, err := ParseKeyType("dsa"); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "use rsa2048, ") {
		t.Error(err)
	}
}

// FuzzParseURI: what is read says again what was given, and a PIN neither gets through nor into
// an error.
func FuzzParseURI(f *testing.F) {
	for _, s := range []string{
		"file:/etc/scep/ca.key?chain=/etc/scep/ca.pem", "file:///a%20b", "tpm:?handle=0x81010000", "pkcs11:token=a;id=%69%00?module-path=/x.so&pin-source=file:/p",
		"pkcs11:token=a?pin-value=1234", "file://localhost", "x:%", "pkcs11:;", "pkcs11:a=%70in-value=1", "file:/x?a=%0a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const canary = "c4n4ry-9d1e"
		for _, pin := range []string{s + "pin-value=" + canary, s + "?pin-value=" + canary, s + ";PIN-VALUE=" + canary + "&x"} {
			if _, err := ParseURI(pin); err == nil || strings.Contains(err.Error(), canary) {
				t.Errorf("%q: %v", pin, err)
			}
		}
		u, err := ParseURI(s)
		if err != nil {
			if u != nil || !strings.HasPrefix(err.Error(), "backend: ") {
				t.Errorf("%+v, %v", u, err)
			}
			return
		}
		if hasPIN(u.Path) || control(u.Path) || u.String() != s || u.Scheme == "pkcs11" && u.Path != "" {
			t.Errorf("%+v", u)
		}
		// Written again, each part for itself, it is the same.
		path := url.PathEscape(u.Path)
		var parts [2][]string
		for i, have := range []map[string]string{u.Attributes, u.Query} {
			for name, value := range have {
				if value == "" {
					t.Errorf("%s is empty", name)
				}
				parts[i] = append(parts[i], name+"="+strings.ReplaceAll(url.PathEscape(value), "&", "%26"))
			}
		}
		again, err := ParseURI(u.Scheme + ":" + path + strings.Join(parts[0], ";") + "?" + strings.Join(parts[1], "&"))
		if err != nil {
			t.Fatal(err)
		}
		if again.Path != u.Path || !maps.Equal(again.Attributes, u.Attributes) || !maps.Equal(again.Query, u.Query) {
			t.Errorf("%+v; was %+v", again, u)
		}
	})
}
