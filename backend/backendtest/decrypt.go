//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package backendtest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"

	"github.com/scepkit/scepkit/scep"
)

// unwrapper returns the key as one that decrypts.
func (b *bench) unwrapper() (scep.Unwrapper, *rsa.PublicKey, error) {
	u, ok := b.Key.(scep.Unwrapper)
	if !ok {
		return nil, nil, gap(fmt.Sprintf("%T is not a scep.Unwrapper", b.Key))
	}
	pub, ok := b.Key.Public().(*rsa.PublicKey)
	if !ok {
		return nil, nil, gap(fmt.Sprintf("the key is a %T, which cannot decrypt", b.Key.Public()))
	}
	return u, pub, nil
}

// paddings returns those that the key must know.
func (b *bench) paddings() []crypto.DecrypterOpts {
	all := []crypto.DecrypterOpts{&rsa.PKCS1v15DecryptOptions{}}
	for _, h := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		if !slices.Contains(b.h.LacksOAEP, h) {
			all = append(all, &rsa.OAEPOptions{Hash: h})
		}
	}
	return all
}

func padding(opts crypto.DecrypterOpts) string {
	if o, ok := opts.(*rsa.OAEPOptions); ok {
		return fmt.Sprintf("OAEP with %v", o.Hash)
	}
	return "PKCS #1 v1.5"
}

// wrap encrypts key.
func wrap(pub *rsa.PublicKey, key []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if o, ok := opts.(*rsa.OAEPOptions); ok {
		return rsa.EncryptOAEPWithOptions(rand.Reader, pub, key, o)
	}
	return rsa.EncryptPKCS1v15(rand.Reader, pub, key)
}

// unwrap has the key decrypt n bytes.
func (b *bench) unwrap(ctx context.Context, n int, opts crypto.DecrypterOpts) error {
	u, pub, err := b.unwrapper()
	if err != nil {
		return err
	}
	key := make([]byte, n)
	rand.Read(key)
	block, err := wrap(pub, key, opts)
	if err != nil {
		return err
	}
	before := bytes.Clone(block)
	got, err := u.UnwrapKey(ctx, block, n, opts)
	if err != nil {
		return fmt.Errorf("%s, %d bytes: %w", padding(opts), n, err)
	}
	if !bytes.Equal(got, key) {
		return fmt.Errorf("%s, %d bytes: another key comes out", padding(opts), n)
	}
	if !bytes.Equal(block, before) {
		return fmt.Errorf("%s, %d bytes: the block was changed", padding(opts), n)
	}
	return nil
}

// malformed returns blocks that hold no key of 16 bytes.
func malformed(pub *rsa.PublicKey, opts crypto.DecrypterOpts) (map[string][]byte, error) {
	size := pub.Size()
	good, err := wrap(pub, make([]byte, 16), opts)
	short, err2 := wrap(pub, make([]byte, 15), opts)
	long, err3 := wrap(pub, make([]byte, 17), opts)
	// PKCS #1 v1.5 with a first byte, a type and a length of padding that it must not have.
	var raw [3][]byte
	for i, head := range [][]byte{{1, 2}, {0, 1}, {0, 2, 7, 7, 0}} {
		raw[i] = bytes.Repeat([]byte{7}, size)
		copy(raw[i], head)
		raw[i][size-17] = 0
		raw[i] = textbook(pub, raw[i])
	}
	if err := errors.Join(err, err2, err3); err != nil {
		return nil, err
	}
	flipped := bytes.Clone(good)
	flipped[size/2] ^= 1
	random := make([]byte, size)
	rand.Read(random[1:])
	modulus := pub.N.FillBytes(make([]byte, size))
	return map[string][]byte{
		"flipped bit": flipped, "random": random, "zero": make([]byte, size), "one": append(make([]byte, size-1), 1),
		"nothing": nil, "short": good[1:], "long": append([]byte{0}, good...),
		"modulus": modulus, "above the modulus": bytes.Repeat([]byte{0xff}, size),
		"key of 15 bytes": short, "key of 17 bytes": long,
		"wrong first byte": raw[0], "wrong type": raw[1], "padding too short": raw[2],
	}, nil
}

// textbook encrypts without padding.
func textbook(pub *rsa.PublicKey, m []byte) []byte {
	c, e := newInt(m), newInt(nil).SetInt64(int64(pub.E))
	return c.Exp(c, e, pub.N).FillBytes(make([]byte, pub.Size()))
}

var decryptClauses = []clause{{
	name:     "Unwraps",
	contract: "A Key that can decrypt implements scep.Unwrapper.",
	check: func(ctx context.Context, b *bench) error {
		if _, ok := b.Key.(crypto.Decrypter); ok {
			if _, ok := b.Key.(scep.Unwrapper); !ok {
				return fmt.Errorf("%T is a crypto.Decrypter, but not a scep.Unwrapper", b.Key)
			}
		}
		for _, opts := range b.paddings() {
			for _, n := range []int{16, 24, 32} {
				if err := b.unwrap(ctx, n, opts); err != nil {
					return err
				}
			}
		}
		return nil
	},
}, {
	name:     "SignsOnly",
	contract: "A Key that cannot decrypt does not have that method.",
	check: func(_ context.Context, b *bench) error {
		if _, ok := b.Key.Public().(*rsa.PublicKey); ok {
			return gap("whether an RSA key can decrypt is what Unwraps checks")
		}
		_, unwraps := b.Key.(scep.Unwrapper)
		_, decrypts := b.Key.(crypto.Decrypter)
		if unwraps || decrypts {
			return fmt.Errorf("%T decrypts, and its public key is a %T", b.Key, b.Key.Public())
		}
		return nil
	},
}, {
	name:     "Malformed",
	contract: "A malformed block gives random bytes; an error always means that the key is unavailable.",
	check: func(ctx context.Context, b *bench) error {
		u, pub, err := b.unwrapper()
		if err != nil {
			return err
		}
		seen := map[string]bool{string(make([]byte, 16)): true, string(make([]byte, 24)): true}
		for _, opts := range b.paddings() {
			blocks, err := malformed(pub, opts)
			if err != nil {
				return err
			}
			for name, block := range blocks {
				repeats := true
				// A device that rejects implicitly makes up the same key for a block each time, of
				// one length that depends on the block: so it may repeat itself at one length, not at two.
				for _, n := range []int{16, 24} {
					first, err := rejected(ctx, u, block, n, opts)
					second, err2 := rejected(ctx, u, block, n, opts)
					if err := errors.Join(err, err2); err != nil {
						return fmt.Errorf("%s, %s: %w", padding(opts), name, err)
					}
					if seen[string(first)] || seen[string(second)] {
						return fmt.Errorf("%s, %s: %x is what another block gives", padding(opts), name, first)
					}
					seen[string(first)], seen[string(second)] = true, true
					repeats = repeats && bytes.Equal(first, second)
				}
				if repeats {
					return fmt.Errorf("%s, %s: the same bytes each time", padding(opts), name)
				}
				if err := b.unwrap(ctx, 16, opts); err != nil {
					return fmt.Errorf("after %s: %w", name, err)
				}
			}
		}
		return nil
	},
}}

// rejected returns what a malformed block gives for a key of n bytes.
func rejected(ctx context.Context, u scep.Unwrapper, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	key, err := u.UnwrapKey(ctx, block, n, opts)
	if err == nil && len(key) != n {
		err = fmt.Errorf("%d bytes come out", len(key))
	}
	return key, err
}
