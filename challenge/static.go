package challenge

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/scepkit/scepkit/scep"
)

// Static returns a challenge that admits requests which carry any one of secrets: one, or for a
// time the old and the new one. An empty secret admits nobody, and [scep.New] refuses a Static
// that has no other.
//
// It keeps keyed hashes, and compares all of them in constant time. Whoever knows a shared secret
// may enrol under any name that the policy admits: use [OneTime] where devices must not.
func Static(secrets ...string) scep.Challenge {
	s := &static{key: randomKey()}
	for _, secret := range secrets {
		if secret != "" {
			s.macs = append(s.macs, mac(s.key, secret))
		}
	}
	return s
}

type static struct {
	key  []byte // of this value alone
	macs [][]byte
}

func (s *static) Validate(ctx context.Context, req *scep.Request) error {
	got := mac(s.key, req.Secret.Reveal())
	found := 0
	for _, want := range s.macs {
		found |= subtle.ConstantTimeCompare(got, want)
	}
	if found == 1 {
		return nil
	}
	return refused("not one of the secrets")
}

// Check implements the check that [scep.New] makes.
func (s *static) Check() error {
	if len(s.macs) == 0 {
		return errors.New("challenge: Static has no secret and admits nobody; is the variable that it comes from set?")
	}
	return nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

func randomKey() []byte {
	key := make([]byte, 32)
	rand.Read(key)
	return key
}

const (
	hashPrefix     = "pbkdf2-sha256"
	hashIterations = 100_000
	minIterations  = 10_000
	maxIterations  = 10_000_000
)

// Hash returns a salted, iterated hash of secret for [StaticHashed]: text without blanks that is
// different each time.
func Hash(secret string) string {
	salt := make([]byte, 16)
	rand.Read(salt)
	return encodeHash(secret, salt, hashIterations)
}

func encodeHash(secret string, salt []byte, iterations int) string {
	return strings.Join([]string{hashPrefix, strconv.Itoa(iterations),
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(derive(secret, salt, iterations))}, "$")
}

func derive(secret string, salt []byte, iterations int) []byte {
	// Hashed before, because HMAC takes a key and the same key with zeros behind it for one.
	short := sha256.Sum256([]byte(secret))
	sum, err := pbkdf2.Key(sha256.New, string(short[:]), salt, iterations, sha256.Size)
	if err != nil {
		panic(err) // only for sizes that are not used here
	}
	return sum
}

// StaticHashed is [Static] for secrets of which only the [Hash] is known. Hashing takes some ten
// milliseconds; it is done for one request at a time, and once for each secret that is right, so
// that guessing costs no more than one processor.
func StaticHashed(hashes ...string) (scep.Challenge, error) {
	s := &staticHashed{key: randomKey(), turn: make(chan struct{}, 1)}
	for i, h := range hashes {
		parsed, err := parseHash(h)
		if err != nil {
			return nil, fmt.Errorf("challenge: hash %d: %w; make one with challenge.Hash", i, err)
		}
		s.hashes = append(s.hashes, parsed)
	}
	if len(s.hashes) == 0 {
		return nil, errors.New("challenge: StaticHashed has no hash and would admit nobody")
	}
	return s, nil
}

type staticHashed struct {
	hashes []hash
	turn   chan struct{} // held while hashing

	key  []byte
	mu   sync.RWMutex
	good [][]byte // keyed hashes of secrets that were right; at most one for each hash
}

type hash struct {
	iterations int
	salt, sum  []byte
}

func parseHash(text string) (h hash, err error) {
	parts := strings.Split(text, "$")
	if len(parts) != 4 || parts[0] != hashPrefix {
		return h, errors.New("is not of the form " + hashPrefix + "$iterations$salt$hash")
	}
	if h.iterations, err = strconv.Atoi(parts[1]); err != nil || h.iterations < minIterations || h.iterations > maxIterations {
		return h, fmt.Errorf("has iterations outside %d to %d", minIterations, maxIterations)
	}
	if h.salt, err = base64.RawStdEncoding.DecodeString(parts[2]); err != nil || len(h.salt) < 16 {
		return h, errors.New("has a salt that is not base64 of 16 bytes or more")
	}
	if h.sum, err = base64.RawStdEncoding.DecodeString(parts[3]); err != nil || len(h.sum) != sha256.Size {
		return h, errors.New("has a hash that is not base64 of 32 bytes")
	}
	return h, nil
}

func (s *staticHashed) Validate(ctx context.Context, req *scep.Request) error {
	secret := req.Secret.Reveal()
	if secret == "" {
		return refused("no challenge")
	}
	tag := mac(s.key, secret)
	if s.known(tag) {
		return nil
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return fmt.Errorf("challenge: waiting to compare hashes: %w", context.Cause(ctx))
	}
	if s.known(tag) {
		return nil
	}
	found := 0
	for _, h := range s.hashes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("challenge: comparing hashes: %w", err)
		}
		found |= subtle.ConstantTimeCompare(derive(secret, h.salt, h.iterations), h.sum)
	}
	if found == 0 {
		return refused("not one of the secrets")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.good = append(s.good, tag)
	return nil
}

func (s *staticHashed) known(tag []byte) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	found := 0
	for _, good := range s.good {
		found |= subtle.ConstantTimeCompare(tag, good)
	}
	return found == 1
}
