//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package tpm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// device is a key in a TPM. It implements custody.Device.
type device struct {
	t      *TPM
	m      *material
	closed closed
}

var _ custody.Device = (*device)(nil)

// Sign implements custody.Device.
func (d *device) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := d.closed.check(); err != nil {
		return nil, err
	}
	if !d.m.signs() {
		return nil, fmt.Errorf("its attributes allow it only to decrypt: %w", backend.ErrUnsupported)
	}
	scheme, err := d.m.scheme(opts)
	if err != nil {
		return nil, err
	}
	rsp, err := run(ctx, d.t, d.t.timeout, func(o *op) (*tpm2.SignResponse, error) {
		return use(o, d.m, false, func(h tpm2.AuthHandle) (*tpm2.SignResponse, error) {
			return tpm2.Sign{
				KeyHandle:  h,
				Digest:     tpm2.TPM2BDigest{Buffer: digest},
				InScheme:   scheme,
				Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
			}.Execute(o)
		})
	})
	if err != nil {
		return nil, err
	}
	sig, err := encodeSignature(&rsp.Signature)
	if err != nil {
		return nil, fmt.Errorf("reading a signature: %w: %w", err, backend.ErrUnavailable)
	}
	return sig, d.checkSalt(digest, sig, opts)
}

// use runs a command with a key.
func use[R any](o *op, m *material, encrypted bool, command func(tpm2.AuthHandle) (R, error)) (R, error) {
	var none R
	k, s, err := o.useKey(m)
	if err != nil {
		return none, err
	}
	rsp, err := execute(o, func() (R, error) {
		return command(tpm2.AuthHandle{Handle: k.handle, Name: tpm2.TPM2BName{Buffer: m.name}, Auth: s.with(m.auth, encrypted)})
	})
	var rc tpm2.TPMRC
	switch {
	case err == nil:
		m.proved = true
		m.pin = o.t.held.storage.name
	case denied(err) && m.proved && !o.second:
		// It was right before: the session may be one that the TPM has no more.
		return none, fmt.Errorf("%w (%w)", errLost, err)
	case denied(err):
		if garbage := o.doubt(err); garbage != nil {
			return none, garbage
		}
		m.refused = fmt.Errorf("the TPM does not accept the authorization value of this key; give the right one with auth-source= and open the key again, until when it is not tried any more (%w): %w", err, backend.ErrPIN)
		return none, m.refused
	case errors.As(err, &rc) && (rc.Is(tpm2.TPMRCScheme) || rc.Is(tpm2.TPMRCHash) || rc.Is(tpm2.TPMRCAttributes) || rc.Is(tpm2.TPMRCKey)):
		return none, fmt.Errorf("this TPM, or the attributes of this key, do not allow that hash or padding (%w): %w", err, backend.ErrUnsupported)
	}
	return rsp, err
}

// scheme says to the TPM what opts asks for.
func (m *material) scheme(opts crypto.SignerOpts) (tpm2.TPMTSigScheme, error) {
	hash, err := hashAlg(opts.HashFunc())
	if err != nil {
		return tpm2.TPMTSigScheme{}, err
	}
	alg := tpm2.TPMAlgECDSA
	if pub, ok := m.key.(*rsa.PublicKey); ok {
		alg = tpm2.TPMAlgRSASSA
		if pss, ok := opts.(*rsa.PSSOptions); ok {
			alg = tpm2.TPMAlgRSAPSS
			// A TPM chooses the length itself (Part 1, B.7): that of the hash, or the largest.
			largest := custody.SaltLength(pub, &rsa.PSSOptions{Hash: pss.Hash, SaltLength: rsa.PSSSaltLengthAuto})
			if n := custody.SaltLength(pub, pss); n != pss.Hash.Size() && n != largest {
				return tpm2.TPMTSigScheme{}, fmt.Errorf("a TPM makes no PSS signatures with %d bytes of salt; use rsa.PSSSaltLengthEqualsHash: %w", n, backend.ErrUnsupported)
			}
		}
	}
	return tpm2.TPMTSigScheme{Scheme: alg, Details: tpm2.NewTPMUSigScheme(alg, &tpm2.TPMSSchemeHash{HashAlg: hash})}, nil
}

func hashAlg(h crypto.Hash) (tpm2.TPMIAlgHash, error) {
	switch h {
	case crypto.SHA1:
		return tpm2.TPMAlgSHA1, nil
	case crypto.SHA256:
		return tpm2.TPMAlgSHA256, nil
	case crypto.SHA384:
		return tpm2.TPMAlgSHA384, nil
	case crypto.SHA512:
		return tpm2.TPMAlgSHA512, nil
	}
	return 0, fmt.Errorf("hash %v; use SHA-256, SHA-384 or SHA-512: %w", h, backend.ErrUnsupported)
}

// encodeSignature returns a signature as crypto.Signer does.
func encodeSignature(s *tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		sig, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return sig.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		sig, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return sig.Sig.Buffer, nil
	case tpm2.TPMAlgECDSA:
		sig, err := s.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		var b cryptobyte.Builder
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1BigInt(new(big.Int).SetBytes(sig.SignatureR.Buffer))
			b.AddASN1BigInt(new(big.Int).SetBytes(sig.SignatureS.Buffer))
		})
		return b.Bytes()
	}
	return nil, fmt.Errorf("it is by algorithm %#x", uint16(s.SigAlg))
}

// checkSalt tells a PSS signature with another length of salt from one that is wrong.
func (d *device) checkSalt(digest, sig []byte, opts crypto.SignerOpts) error {
	pss, ok := opts.(*rsa.PSSOptions)
	if !ok || custody.Verify(d.m.key, digest, sig, pss) {
		return nil
	}
	if custody.Verify(d.m.key, digest, sig, &rsa.PSSOptions{Hash: pss.Hash, SaltLength: rsa.PSSSaltLengthAuto}) {
		return fmt.Errorf("this TPM makes PSS signatures with another length of salt; use rsa.PSSSaltLengthAuto or PKCS #1 v1.5: %w", backend.ErrUnsupported)
	}
	return nil // and it will be found wrong
}

// Decrypt implements custody.Device.
func (d *device) Decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if err := d.closed.check(); err != nil {
		return nil, err
	}
	scheme, label, err := decryptScheme(opts)
	if err != nil {
		return nil, err
	}
	type result struct {
		message   []byte
		malformed bool
	}
	r, err := run(ctx, d.t, d.t.timeout, func(o *op) (result, error) {
		rsp, err := use(o, d.m, true, func(h tpm2.AuthHandle) (*tpm2.RSADecryptResponse, error) {
			return tpm2.RSADecrypt{
				KeyHandle:  h,
				CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: block},
				InScheme:   scheme,
				Label:      tpm2.TPM2BData{Buffer: label},
			}.Execute(o)
		})
		malformed := aboutBlock(err)
		if err != nil && !malformed {
			return result{}, err
		}
		// TPM_RC_FAILURE is the answer to bad padding, and to everything by a TPM that has
		// failed. Which it is, the next command tells. It follows good blocks as well: who sent
		// the block must not learn from the time which it was.
		if err := o.ping(); err != nil {
			return result{}, err
		}
		if malformed {
			return result{malformed: true}, nil
		}
		return result{message: rsp.Message.Buffer}, nil
	})
	if err != nil {
		return nil, err
	}
	if r.malformed {
		return nil, rsa.ErrDecryption
	}
	return r.message, nil
}

// aboutBlock reports whether an error of RSA_Decrypt, from a TPM in good health, is about the
// block: TPM_RC_FAILURE, or a complaint about the first parameter.
func aboutBlock(err error) bool {
	var rc tpm2.TPMRC
	if explained(err) || !errors.As(err, &rc) {
		return false
	}
	return rc == tpm2.TPMRCFailure || parameter(rc) || rc == tpm2.TPMRCNoResult
}

func decryptScheme(opts crypto.DecrypterOpts) (scheme tpm2.TPMTRSADecrypt, label []byte, err error) {
	oaep, ok := opts.(*rsa.OAEPOptions)
	if !ok {
		return tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgRSAES, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAES, &tpm2.TPMSEncSchemeRSAES{})}, nil, nil
	}
	hash, err := hashAlg(oaep.Hash)
	if err != nil {
		return scheme, nil, err
	}
	if oaep.MGFHash != 0 && oaep.MGFHash != oaep.Hash {
		return scheme, nil, fmt.Errorf("a TPM has no OAEP with two hashes: %w", backend.ErrUnsupported)
	}
	if n := len(oaep.Label); n > 0 && oaep.Label[n-1] != 0 {
		return scheme, nil, fmt.Errorf("to a TPM an OAEP label ends with a zero byte: %w", backend.ErrUnsupported) // Part 1, B.4
	}
	return tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgOAEP, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: hash})}, oaep.Label, nil
}
