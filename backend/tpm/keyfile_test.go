package tpm

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// sampleKey returns a key that no TPM made.
func sampleKey() *keyFile {
	area := must(keyTemplate(backend.P256, false))
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{ // the generator
		X: tpm2.TPM2BECCParameter{Buffer: must(hex.DecodeString("6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"))},
		Y: tpm2.TPM2BECCParameter{Buffer: must(hex.DecodeString("4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"))},
	})
	return &keyFile{storage: storageRef{handle: tpm2.TPMRHOwner}, public: tpm2.Marshal(area), private: bytes.Repeat([]byte{7}, 100)}
}

func TestParseKeyFile(t *testing.T) {
	good := must(sampleKey().marshal())
	k, err := parseKeyFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if k.emptyAuth || k.storage != sampleKey().storage || !bytes.Equal(k.public, sampleKey().public) || !bytes.Equal(k.private, sampleKey().private) {
		t.Errorf("%+v", k)
	}
	if err := new(material).setPublic(k.public); err != nil {
		t.Error(err)
	}

	// As others write it. Offset 11 is after the type; [0] EXPLICIT BOOLEAN has its value at 16.
	for name, change := range map[string]func([]byte){
		"TRUE as tpm2-openssl has it": func(b []byte) { b[bytes.Index(b, []byte{0xa0, 3, 1, 1})+4] = 1 },
		"TRUE as DER has it":          func(b []byte) { b[bytes.Index(b, []byte{0xa0, 3, 1, 1})+4] = 0xff },
	} {
		b := bytes.Clone(good)
		change(b)
		if k, err := parseKeyFile(b); err != nil || !k.emptyAuth {
			t.Errorf("%s: %+v, %v", name, k, err)
		}
	}
	file := struct {
		Type            asn1.ObjectIdentifier
		EmptyAuth       bool   `asn1:"explicit,tag:0,optional"`
		Policy          []int  `asn1:"explicit,tag:1,optional,omitempty"`
		Description     string `asn1:"explicit,tag:4,optional,utf8"`
		RSAParent       bool   `asn1:"explicit,tag:5,optional"`
		Parent          int64
		Public, Private []byte
	}{oidLoadable, true, nil, "", false, 0x40000001, two(sampleKey().public), two(sampleKey().private)}
	parse := func() (*keyFile, error) { return parseKeyFile(must(asn1.Marshal(file))) }
	if k, err := parse(); err != nil || !k.emptyAuth {
		t.Errorf("by encoding/asn1: %+v, %v", k, err)
	}
	file.Description, file.RSAParent, file.Policy = "the CA's", true, []int{}
	if k, err := parse(); err != nil || !k.storage.rsa {
		t.Errorf("with all fields: %+v, %v", k, err)
	}
	file.Parent = -0x7effffff // 0x81000001 as an int32
	if k, err := parse(); err != nil || k.storage.handle != 0x81000001 {
		t.Errorf("with a negative parent: %+v, %v", k, err)
	}
	for _, parent := range []int64{0, 0x40000007, 0x4000000b, 0x80000000, 1 << 32, -1 << 40} {
		file.Parent = parent
		if _, err := parse(); err == nil {
			t.Errorf("parent %#x is taken", parent)
		}
	}
	file.Parent = 0x40000001
	for _, oid := range []asn1.ObjectIdentifier{oidImportable, oidSealed, {1, 2, 3}} {
		file.Type = oid
		if _, err := parse(); err == nil {
			t.Errorf("type %v is taken", oid)
		}
	}
	for i := range good {
		if _, err := parseKeyFile(good[:i]); err == nil {
			t.Errorf("the first %d bytes are taken", i)
		}
	}
	if _, err := parseKeyFile(append(bytes.Clone(good), 0)); err == nil {
		t.Error("a byte more is taken")
	}
}

// two puts a size before b.
func two(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }

func TestOddFiles(t *testing.T) {
	tpm := must(Open(Config{Device: "unix:/no/socket"}))
	defer tpm.Close()
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	good := block(blockType, must(sampleKey().marshal()))
	changed := func(f func(*tpm2.TPMTPublic)) []byte {
		k := sampleKey()
		area := must(tpm2.Unmarshal[tpm2.TPMTPublic](k.public))
		f(area)
		k.public = tpm2.Marshal(*area)
		return block(blockType, must(k.marshal()))
	}
	for _, tt := range []struct {
		name  string
		data  []byte
		class error
		says  string
	}{
		{"empty", nil, backend.ErrNotFound, "no TSS2 PRIVATE KEY block"},
		{"certificate", block("CERTIFICATE", []byte{0x30, 0}), backend.ErrNotFound, "no TSS2 PRIVATE KEY block"},
		{"key of a file", block("PRIVATE KEY", []byte{1}), backend.ErrUnsupported, "open it with file:"},
		{"two keys", append(bytes.Clone(good), good...), backend.ErrAmbiguous, "leave one"},
		{"cut off", good[:len(good)-20], nil, "cut off or damaged"},
		{"cut inside", block(blockType, must(sampleKey().marshal())[:100]), nil, "damaged"},
		{"too large", make([]byte, custody.MaxFile+1), backend.ErrUnsupported, "name a PEM file"},
		{"odd certificate", append(bytes.Clone(good), block("CERTIFICATE", []byte{0x30, 0})...), nil, "certificate 1"},
		{"no authorization value", good, backend.ErrPIN, "restore the file"},
		{"restricted", changed(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = true }), backend.ErrUnsupported, "restricted"},
		{"by policy", changed(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.UserWithAuth = false }), backend.ErrUnsupported, "policy"},
		{"ECDH", changed(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt, p.ObjectAttributes.Decrypt = false, true }), backend.ErrUnsupported, "cannot open requests"},
		{"useless", changed(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = false }), backend.ErrUnsupported, "neither"},
		{"off the curve", changed(func(p *tpm2.TPMTPublic) {
			p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: []byte{1}}, Y: tpm2.TPM2BECCParameter{Buffer: []byte{2}}})
		}), nil, "damaged"},
		{"other curve", changed(func(p *tpm2.TPMTPublic) {
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCBNP256})
		}), backend.ErrUnsupported, "use RSA, P-256 or P-384"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "ca.tpm")
			if err := os.WriteFile(name, tt.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := tpm.OpenKey(t.Context(), Name{File: name})
			t.Log(err)
			checkError(t, err, tt.class, tt.says)
		})
	}
}

func FuzzKeyFile(f *testing.F) {
	f.Add(must(sampleKey().marshal()))
	empty := sampleKey()
	empty.emptyAuth, empty.storage = true, storageRef{handle: 0x81000001, rsa: true}
	f.Add(must(empty.marshal()))
	rsaKey := sampleKey()
	area := must(keyTemplate(backend.RSA2048, true))
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xff}, 256)})
	rsaKey.public = tpm2.Marshal(area)
	f.Add(must(rsaKey.marshal()))
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := parseKeyFile(der)
		if err != nil {
			return
		}
		again, err := k.marshal()
		if err != nil {
			t.Fatal(err)
		}
		k2, err := parseKeyFile(again)
		if err != nil || k2.emptyAuth != k.emptyAuth || k2.storage != k.storage || !bytes.Equal(k2.public, k.public) || !bytes.Equal(k2.private, k.private) {
			t.Errorf("%x is read as %+v, and written and read again as %+v, %v", der, k, k2, err)
		}
		m := new(material)
		if err := m.setPublic(k.public); err == nil && (m.key == nil || len(m.name) == 0) {
			t.Error("neither key nor error")
		}
	})
}
