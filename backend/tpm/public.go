package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
)

// A material is what it takes to use one key. Who has the turn reads and writes what can change.
type material struct {
	storage    storageRef
	pin        []byte // name that the storage key must have; nil: any, until the key was used
	persistent tpm2.TPMHandle
	public     []byte // TPMT_PUBLIC
	private    tpm2.TPM2BPrivate
	auth       []byte

	name []byte
	area *tpm2.TPMTPublic
	key  crypto.PublicKey

	proved  bool  // the TPM has accepted auth
	refused error // the TPM has not
}

// setPublic takes over the public half, or says why such a key cannot be used.
func (m *material) setPublic(area []byte) error {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		return errDamaged
	}
	// What cannot be written again as it was has more in it than was read.
	if !bytes.Equal(tpm2.Marshal(*public), area) {
		return errDamaged
	}
	if public.Type != tpm2.TPMAlgRSA && public.Type != tpm2.TPMAlgECC {
		return fmt.Errorf("it is not an RSA or ECC key: %w", backend.ErrUnsupported)
	}
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return fmt.Errorf("its name is of an unknown hash (%v): %w", err, backend.ErrUnsupported)
	}
	a := public.ObjectAttributes
	switch {
	case a.Restricted:
		return fmt.Errorf("it is restricted to what the TPM itself makes, as attestation and storage keys are; make one that is not: %w", backend.ErrUnsupported)
	case !a.UserWithAuth:
		return fmt.Errorf("it can only be used by a policy; make one that is used by an authorization value: %w", backend.ErrUnsupported)
	case !a.SignEncrypt && !a.Decrypt:
		return fmt.Errorf("it may neither sign nor decrypt: %w", backend.ErrUnsupported)
	}
	key, err := tpm2.Pub(*public)
	if err != nil {
		return fmt.Errorf("it is of a kind that is not used here (%v); use RSA, P-256 or P-384: %w", err, backend.ErrUnsupported)
	}
	switch key := key.(type) {
	case *rsa.PublicKey:
		parms, err := public.Parameters.RSADetail()
		if err != nil || key.N.BitLen() != int(parms.KeyBits) || key.N.Bit(0) == 0 || key.E < 3 || key.E&1 == 0 {
			return errDamaged
		}
	case *ecdsa.PublicKey:
		if _, err := key.ECDH(); err != nil { // not on the curve
			return errDamaged
		}
		if !a.SignEncrypt {
			return fmt.Errorf("it may not sign, and an ECC key cannot open requests: %w", backend.ErrUnsupported)
		}
	}
	m.public, m.area, m.key, m.name = area, public, key, name.Buffer
	return nil
}

func (m *material) signs() bool { return m.area.ObjectAttributes.SignEncrypt }

func (m *material) decrypts() bool {
	_, ok := m.key.(*rsa.PublicKey)
	return ok && m.area.ObjectAttributes.Decrypt
}

// attributes says how the key is protected.
func (m *material) attributes() string {
	a := m.area.ObjectAttributes
	var out []string
	for _, f := range []struct {
		set  bool
		name string
	}{
		{a.FixedTPM, "fixedTPM"}, {a.FixedParent, "fixedParent"}, {a.SensitiveDataOrigin, "sensitiveDataOrigin"},
		{a.UserWithAuth, "userWithAuth"}, {a.NoDA, "noDA"}, {a.SignEncrypt, "sign"}, {a.Decrypt, "decrypt"},
	} {
		if f.set {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, " ")
}

// keyTemplate returns the public half of a key to be made.
func keyTemplate(t backend.KeyType, decrypt bool) (tpm2.TPMTPublic, error) {
	out := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true, // the value cannot be guessed, and lockout would stop the server
			SignEncrypt:         true,
			Decrypt:             decrypt,
		},
	}
	bits, curve := tpm2.TPMKeyBits(0), tpm2.TPMECCCurve(0)
	switch t {
	case backend.RSA2048:
		bits = 2048
	case backend.RSA3072:
		bits = 3072
	case backend.RSA4096:
		bits = 4096
	case backend.P256:
		curve = tpm2.TPMECCNistP256
	case backend.P384:
		curve = tpm2.TPMECCNistP384
	default:
		return out, fmt.Errorf("no TPM makes a key of kind %v; use RSA or ECDSA: %w", t, backend.ErrUnsupported)
	}
	if bits != 0 {
		out.Type = tpm2.TPMAlgRSA
		out.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: bits})
		return out, nil
	}
	if decrypt {
		return out, fmt.Errorf("a %v key cannot decrypt; make an RSA key: %w", t, backend.ErrUnsupported)
	}
	out.Type = tpm2.TPMAlgECC
	out.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
	return out, nil
}
