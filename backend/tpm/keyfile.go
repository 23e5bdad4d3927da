package tpm

import (
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/crypto/cryptobyte"
	asn1tag "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/backend"
)

// blockType is the kind of PEM block that a key is in.
const blockType = "TSS2 PRIVATE KEY"

// keyFile is a TPMKey of "ASN.1 Specification for TPM 2.0 Key Files":
//
//	TPMKey ::= SEQUENCE {
//	    type        OBJECT IDENTIFIER,
//	    emptyAuth   [0] EXPLICIT BOOLEAN OPTIONAL,
//	    policy      [1] EXPLICIT SEQUENCE OF TPMPolicy OPTIONAL,
//	    secret      [2] EXPLICIT OCTET STRING OPTIONAL,
//	    authPolicy  [3] EXPLICIT SEQUENCE OF TPMAuthPolicy OPTIONAL,
//	    description [4] EXPLICIT UTF8String OPTIONAL,
//	    rsaParent   [5] EXPLICIT BOOLEAN OPTIONAL,
//	    parent      INTEGER,
//	    pubkey      OCTET STRING,
//	    privkey     OCTET STRING
//	}
type keyFile struct {
	emptyAuth bool
	storage   storageRef
	public    []byte // TPMT_PUBLIC
	private   []byte // the contents of a TPM2B_PRIVATE
}

var (
	oidLoadable   = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}
	oidImportable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 4}
	oidSealed     = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 5}
)

var errDamaged = errors.New("it is not a TPMKey, or damaged; restore it from where it came")

func parseKeyFile(der []byte) (*keyFile, error) {
	in := cryptobyte.String(der)
	var seq cryptobyte.String
	var oid asn1.ObjectIdentifier
	if !in.ReadASN1(&seq, asn1tag.SEQUENCE) || !in.Empty() || !seq.ReadASN1ObjectIdentifier(&oid) {
		return nil, errDamaged
	}
	switch {
	case oid.Equal(oidLoadable):
	case oid.Equal(oidImportable):
		return nil, fmt.Errorf("it has a key that is yet to be imported into a TPM; make one in the TPM: %w", backend.ErrUnsupported)
	case oid.Equal(oidSealed):
		return nil, fmt.Errorf("it has sealed data and not a key: %w", backend.ErrUnsupported)
	default:
		return nil, fmt.Errorf("it has something of the unknown kind %v: %w", oid, backend.ErrUnsupported)
	}

	k := &keyFile{}
	// Policies are for keys that need them, which the public half tells; a description is for
	// people; a secret comes with keys to be imported.
	for tag := uint8(0); tag <= 5; tag++ {
		var field cryptobyte.String
		var present bool
		if !seq.ReadOptionalASN1(&field, &present, asn1tag.Tag(tag).Constructed().ContextSpecific()) {
			return nil, errDamaged
		}
		ok := true
		switch {
		case !present:
		case tag == 0:
			k.emptyAuth, ok = readBoolean(field)
		case tag == 5:
			k.storage.rsa, ok = readBoolean(field)
		}
		if !ok {
			return nil, errDamaged
		}
	}
	var parent int64
	var public, private cryptobyte.String
	if !seq.ReadASN1Integer(&parent) || !seq.ReadASN1(&public, asn1tag.OCTET_STRING) || !seq.ReadASN1(&private, asn1tag.OCTET_STRING) || !seq.Empty() {
		return nil, errDamaged
	}
	// Handles with the top bit set are negative numbers to some who write them.
	if parent < -1<<31 || parent >= 1<<32 {
		return nil, errDamaged
	}
	k.storage.handle = tpm2.TPMHandle(uint32(parent))
	if err := k.storage.supported(); err != nil {
		return nil, err
	}
	var ok1, ok2 bool
	k.public, ok1 = sized(public)
	k.private, ok2 = sized(private)
	if !ok1 || !ok2 {
		return nil, errDamaged
	}
	return k, nil
}

// supported reports why keys below such a storage key are not used.
func (r storageRef) supported() error {
	if r.handle != tpm2.TPMRHOwner && r.handle>>24 != 0x81 {
		return fmt.Errorf("its parent is %#x; make the key below the owner hierarchy (0x40000001) or a persistent storage key (as 0x81000001): %w", uint32(r.handle), backend.ErrUnsupported)
	}
	return nil
}

// readBoolean reads a BOOLEAN. TRUE is 01 to tpm2-openssl, which DER does not allow.
func readBoolean(s cryptobyte.String) (value, ok bool) {
	var b cryptobyte.String
	if !s.ReadASN1(&b, asn1tag.BOOLEAN) || !s.Empty() || len(b) != 1 {
		return false, false
	}
	return b[0] != 0, true
}

// sized returns the contents of a TPM2B.
func sized(b []byte) ([]byte, bool) {
	if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 || len(b) == 2 {
		return nil, false
	}
	return b[2:], true
}

func (k *keyFile) marshal() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(asn1tag.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidLoadable)
		b.AddASN1(asn1tag.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Boolean(k.emptyAuth) })
		if k.storage.rsa {
			b.AddASN1(asn1tag.Tag(5).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) { b.AddASN1Boolean(true) })
		}
		b.AddASN1Int64(int64(uint32(k.storage.handle)))
		for _, field := range [][]byte{k.public, k.private} {
			b.AddASN1(asn1tag.OCTET_STRING, func(b *cryptobyte.Builder) {
				b.AddUint16LengthPrefixed(func(b *cryptobyte.Builder) { b.AddBytes(field) })
			})
		}
	})
	return b.Bytes()
}
