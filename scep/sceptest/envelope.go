//lint:file-ignore SA1019 SCEP is made of PKCS #1 v1.5

package sceptest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/des"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"slices"
)

// A Cipher is a content-encryption algorithm.
type Cipher uint8

const (
	AES128 Cipher = iota
	AES192
	AES256
	TripleDES
	SingleDES
)

type cipherAlgorithm struct {
	oid asn1.ObjectIdentifier
	key int // bytes
	new func([]byte) (cipher.Block, error)
}

var ciphers = []cipherAlgorithm{
	AES128:    {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 2}, 16, aes.NewCipher},
	AES192:    {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 22}, 24, aes.NewCipher},
	AES256:    {asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}, 32, aes.NewCipher},
	TripleDES: {asn1.ObjectIdentifier{1, 2, 840, 113549, 3, 7}, 24, des.NewTripleDESCipher},
	SingleDES: {asn1.ObjectIdentifier{1, 3, 14, 3, 2, 7}, 8, des.NewCipher},
}

// An Envelope describes an EnvelopedData. Its zero value, with Content and one of Recipients, is
// one in AES-128-CBC.
type Envelope struct {
	Content    []byte // what is encrypted
	Cipher     Cipher
	Algorithm  []byte // AlgorithmIdentifier in place of the one of Cipher
	Recipients []Recipient

	Key        []byte              // content-encryption key; if nil, random
	IV         []byte              // if nil, random
	Pad        func([]byte) []byte // in place of PKCS #7
	Ciphertext func([]byte) []byte // has the last word on it
	Pieces     int                 // if positive, encryptedContent is constructed, of pieces so long
	Indefinite bool                // lengths
	Version    int64               // if zero, 0, or 2 if a recipient is named by key identifier, or 3 if there is a password
	Bare       bool                // no ContentInfo around it
	Type       asn1.ObjectIdentifier
	EncType    asn1.ObjectIdentifier // of the encrypted content; if nil, id-data
}

// A Recipient describes a RecipientInfo.
type Recipient struct {
	Certificate *x509.Certificate // to whom, and by which name

	KeyID        bool      // name it by subjectKeyIdentifier
	Issuer       []byte    // DER of Name in place of the certificate's
	Serial       []byte    // content octets in place of the certificate's
	Password     *Password // in place of Certificate
	OAEP         *OAEP     // if nil, PKCS#1 v1.5
	Algorithm    []byte    // AlgorithmIdentifier in place of the right one
	Key          []byte    // what is encrypted, in place of the content-encryption key
	EncryptedKey func([]byte) []byte

	Raw []byte // the whole RecipientInfo; nothing else matters then
}

// OAEP describes RSAES-OAEP.
type OAEP struct {
	Hash   crypto.Hash // if zero, SHA-1
	MGF    crypto.Hash // if zero, Hash
	Params OAEPParams
}

// OAEPParams says how the parameters are written.
type OAEPParams uint8

const (
	OAEPFull     OAEPParams = iota // all of them
	OAEPEmpty                      // an empty SEQUENCE
	OAEPNull                       // NULL
	OAEPAbsent                     // nothing
	OAEPHashOnly                   // hashAlgorithm alone: the mask is made with SHA-1
)

func (o *OAEP) hashes() (hash, mgf crypto.Hash) {
	hash, mgf = o.Hash, o.MGF
	if hash == 0 {
		hash = crypto.SHA1
	}
	if mgf == 0 {
		mgf = hash
	}
	return hash, mgf
}

func (o *OAEP) algorithm() []byte {
	hash, mgf := o.hashes()
	h := TLV(0xa0, Algorithm(hashOIDs[hash], null))
	switch o.Params {
	case OAEPEmpty:
		return Algorithm(oidOAEP, TLV(TagSequence))
	case OAEPNull:
		return Algorithm(oidOAEP, null)
	case OAEPAbsent:
		return Algorithm(oidOAEP, nil)
	case OAEPHashOnly:
		return Algorithm(oidOAEP, TLV(TagSequence, h))
	}
	return Algorithm(oidOAEP, TLV(TagSequence, h, TLV(0xa1, Algorithm(oidMGF1, Algorithm(hashOIDs[mgf], null)))))
}

// der returns the RecipientInfo around key.
func (r Recipient) der(w writer, key []byte) []byte {
	if r.Raw != nil {
		return r.Raw
	}
	if r.Key != nil {
		key = r.Key
	}
	if r.Password != nil {
		return r.Password.der(key, r.EncryptedKey)
	}
	pub := r.Certificate.PublicKey.(*rsa.PublicKey)
	algorithm := Algorithm(oidRSA, null)
	var encrypted []byte
	if r.OAEP == nil {
		encrypted = must(rsa.EncryptPKCS1v15(rand.Reader, pub, key))
	} else {
		hash, mgf := r.OAEP.hashes()
		encrypted = must(rsa.EncryptOAEPWithOptions(rand.Reader, pub, key, &rsa.OAEPOptions{Hash: hash, MGFHash: mgf}))
		algorithm = r.OAEP.algorithm()
	}
	if r.EncryptedKey != nil {
		encrypted = r.EncryptedKey(encrypted)
	}
	if r.Algorithm != nil {
		algorithm = r.Algorithm
	}
	version, rid := int64(0), w.cons(TagSequence, r.issuer(), r.serial())
	if r.KeyID {
		version, rid = 2, TLV(0x80, r.Certificate.SubjectKeyId)
	}
	return w.cons(TagSequence, Integer(version), rid, algorithm, TLV(TagOctetString, encrypted))
}

func (r Recipient) issuer() []byte {
	if r.Issuer != nil {
		return r.Issuer
	}
	return r.Certificate.RawIssuer
}

func (r Recipient) serial() []byte {
	if r.Serial != nil {
		return TLV(TagInteger, r.Serial)
	}
	return bigInteger(r.Certificate.SerialNumber)
}

// BER returns the ContentInfo.
func (e Envelope) BER() []byte {
	w := writer{e.Indefinite}
	c := ciphers[e.Cipher]
	key, iv := e.Key, e.IV
	if key == nil {
		key = make([]byte, c.key)
		rand.Read(key)
	}
	block := must(c.new(key[:c.key]))
	if iv == nil {
		iv = make([]byte, block.BlockSize())
		rand.Read(iv)
	}
	pad := e.Pad
	if pad == nil {
		pad = func(b []byte) []byte {
			n := block.BlockSize() - len(b)%block.BlockSize()
			return append(slices.Clone(b), bytes.Repeat([]byte{byte(n)}, n)...)
		}
	}
	text := slices.Clone(pad(e.Content))
	if whole := len(text) - len(text)%block.BlockSize(); len(iv) == block.BlockSize() {
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(text[:whole], text[:whole])
	}
	if e.Ciphertext != nil {
		text = e.Ciphertext(text)
	}
	algorithm := e.Algorithm
	if algorithm == nil {
		algorithm = Algorithm(c.oid, TLV(TagOctetString, iv))
	}
	version := e.Version
	var recipients [][]byte
	for _, r := range e.Recipients {
		if r.KeyID && version == 0 {
			version = 2
		}
		if r.Password != nil && e.Version == 0 {
			version = 3
		}
		recipients = append(recipients, r.der(w, key))
	}
	encType := e.EncType
	if encType == nil {
		encType = oidData
	}
	enveloped := w.cons(TagSequence,
		Integer(version),
		w.cons(TagSet, recipients...),
		w.cons(TagSequence, OID(encType), algorithm, w.octets(0x80, text, e.Pieces)))
	if e.Bare {
		return enveloped
	}
	outer := e.Type
	if outer == nil {
		outer = oidEnveloped
	}
	return w.cons(TagSequence, OID(outer), w.cons(0xa0, enveloped))
}
