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
	key := randomKey()
	var macs [][]byte
	for _, secret := range secrets {
		if secret != "" {
			macs = append(macs, mac(key, secret))
		}
	}
	return &static{len(macs), func(secret string) bool { return among(macs, mac(key, secret)) }}
}

// static has a func in place of what that knows, because fmt prints fields.
type static struct {
	secrets int
	knows   func(secret string) bool
}

func (s *static) Validate(ctx context.Context, req *scep.Request) error {
	if s.knows(req.Secret.Reveal()) {
		return nil
	}
	return refused("not one of the secrets")
}

// among compares all of macs with got.
func among(macs [][]byte, got []byte) bool {
	found := 0
	for _, want := range macs {
		found |= subtle.ConstantTimeCompare(got, want)
	}
	return found == 1
}

// Check implements the check that [scep.New] makes.
func (s *static) Check() error {
	if s.secrets == 0 {
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
// that guessing costs no more than one processor. When too many requests with unknown secrets
// wait for it, others of their kind are told to come again: those with a known one do not wait.
func StaticHashed(hashes ...string) (scep.Challenge, error) {
	key := randomKey()
	s := &staticHashed{
		tag:   func(secret string) []byte { return mac(key, secret) },
		turn:  make(chan struct{}, 1),
		queue: make(chan struct{}, maxGuesses),
	}
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

// maxGuesses is how many requests may wait for their secrets to be hashed.
const maxGuesses = 16

type staticHashed struct {
	hashes []hash
	tag    func(secret string) []byte // keyed; a func because fmt prints fields
	queue  chan struct{}              // holds a token for each request that waits or hashes
	turn   chan struct{}              // held while hashing

	mu   sync.RWMutex
	good [][]byte // tags of secrets that were right; at most one for each hash
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
	tag := s.tag(secret)
	if s.known(tag) {
		return nil
	}
	select {
	case s.queue <- struct{}{}:
		defer func() { <-s.queue }()
	default:
		return errors.New("challenge: too many requests wait for their secrets to be compared")
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
	return among(s.good, tag)
}
