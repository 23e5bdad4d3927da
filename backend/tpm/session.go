package tpm

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// A session is an HMAC session that is not bound and is salted to a storage key. It serves one
// command after the other, each with its own authorization value and encryption, which those of
// go-tpm do not; and those cut values at the first zero byte.
type session struct {
	handle   tpm2.TPMHandle
	key      []byte // sessionKey
	nonceTPM []byte // of the response before
}

const nonceSize = 32

// openSession starts a session whose key only the holder of the storage key learns.
func (o *op) openSession(storage tpm2.TPMHandle, pub *tpm2.TPMTPublic) (*session, error) {
	kem, err := tpm2.ImportEncapsulationKey(pub)
	if err != nil {
		return nil, fmt.Errorf("reading the storage key: %w", err)
	}
	salt, encrypted, err := tpm2.CreateEncryptedSalt(rand.Reader, kem)
	if err != nil {
		return nil, fmt.Errorf("encrypting to the storage key: %w", err)
	}
	nonce := make([]byte, nonceSize)
	rand.Read(nonce)
	rsp, err := execute(o, func() (*tpm2.StartAuthSessionResponse, error) {
		return tpm2.StartAuthSession{
			TPMKey:        storage,
			Bind:          tpm2.TPMRHNull,
			NonceCaller:   tpm2.TPM2BNonce{Buffer: nonce},
			EncryptedSalt: tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
			SessionType:   tpm2.TPMSEHMAC,
			Symmetric: tpm2.TPMTSymDef{
				Algorithm: tpm2.TPMAlgAES,
				KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
				Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
			},
			AuthHash: tpm2.TPMAlgSHA256,
		}.Execute(o)
	})
	if err != nil {
		return nil, fmt.Errorf("starting a session: %w", err)
	}
	return &session{
		handle:   tpm2.TPMHandle(rsp.SessionHandle.HandleValue()),
		nonceTPM: rsp.NonceTPM.Buffer,
		key:      tpm2.KDFa(crypto.SHA256, salt, "ATH", rsp.NonceTPM.Buffer, nonce, 256), // Part 1, 17.6.8
	}, nil
}

// with returns what authorizes one command by auth. The command's first parameter is encrypted,
// and if response is true also that of the response.
func (s *session) with(auth []byte, response bool) tpm2.Session {
	return &authorization{session: s, auth: auth, attributes: tpm2.TPMASession{ContinueSession: true, Decrypt: true, Encrypt: response}}
}

// An authorization is a session as one command uses it. It implements tpm2.Session.
type authorization struct {
	*session
	auth       []byte
	attributes tpm2.TPMASession
	nonce      []byte // nonceCaller
}

var _ tpm2.Session = (*authorization)(nil)

func (a *authorization) Init(transport.TPM) error           { return nil }
func (a *authorization) CleanupFailure(transport.TPM) error { return nil }
func (a *authorization) NonceTPM() tpm2.TPM2BNonce          { return tpm2.TPM2BNonce{Buffer: a.nonceTPM} }
func (a *authorization) Handle() tpm2.TPMHandle             { return a.handle }

// The attributes are named from where the TPM stands: it encrypts responses.

func (a *authorization) IsEncryption() bool { return a.attributes.Encrypt }
func (a *authorization) IsDecryption() bool { return a.attributes.Decrypt }

func (a *authorization) NewNonceCaller() error {
	a.nonce = make([]byte, nonceSize)
	rand.Read(a.nonce)
	return nil
}

// Authorize computes the HMAC of a command: Part 1, 17.6.5.
func (a *authorization) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, n := range names {
		h.Write(n.Buffer)
	}
	h.Write(parms)
	return &tpm2.TPMSAuthCommand{
		Handle:        a.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: a.nonce},
		Attributes:    a.attributes,
		Authorization: tpm2.TPM2BData{Buffer: a.mac(h.Sum(nil), a.nonce, a.nonceTPM, addNonces, a.attributes)},
	}, nil
}

// Validate checks the HMAC of a response.
func (a *authorization) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, rsp *tpm2.TPMSAuthResponse) error {
	h := sha256.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(rc)))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	h.Write(parms)
	mac := a.mac(h.Sum(nil), rsp.Nonce.Buffer, a.nonce, nil, rsp.Attributes)
	if !hmac.Equal(mac, rsp.Authorization.Buffer) {
		return errors.New("the response is not from the TPM, or is that to another command: its HMAC is wrong")
	}
	if !rsp.Attributes.ContinueSession {
		return errors.New("the TPM ended a session")
	}
	a.nonceTPM = rsp.Nonce.Buffer
	return nil
}

func (a *authorization) mac(hash, newer, older, add []byte, attributes tpm2.TPMASession) []byte {
	mac := hmac.New(sha256.New, append(append([]byte(nil), a.key...), a.auth...))
	for _, b := range [][]byte{hash, newer, older, add, tpm2.Marshal(attributes)} {
		mac.Write(b)
	}
	return mac.Sum(nil)
}

// Encrypt encrypts the first parameter of a command.
func (a *authorization) Encrypt(b []byte) error {
	if a.attributes.Decrypt {
		block, iv := a.cipher(a.nonce, a.nonceTPM)
		//lint:ignore SA1019 Part 1, 19.3 is CFB, and the HMAC is over what it gives
		cipher.NewCFBEncrypter(block, iv).XORKeyStream(b, b)
	}
	return nil
}

// Decrypt decrypts the first parameter of a response. Validate was called before.
func (a *authorization) Decrypt(b []byte) error {
	if a.attributes.Encrypt {
		block, iv := a.cipher(a.nonceTPM, a.nonce)
		//lint:ignore SA1019 as above
		cipher.NewCFBDecrypter(block, iv).XORKeyStream(b, b)
	}
	return nil
}

func (a *authorization) cipher(newer, older []byte) (cipher.Block, []byte) {
	value := append(append([]byte(nil), a.key...), a.auth...)
	key := tpm2.KDFa(crypto.SHA256, value, "CFB", newer, older, 256)
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err) // 16 bytes are a key
	}
	return block, key[16:]
}
