//lint:file-ignore SA1019 SCEP devices send PKCS #1 v1.5

package custody

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// decryptingKey is an RSA key that may also decrypt.
type decryptingKey struct {
	*key

	mu      sync.Mutex
	proven  time.Time // when the last proof that came out well began
	running *proof
}

// A proof is a decryption of a block of our own.
type proof struct {
	done chan struct{}

	// Once done.
	err   error
	ended bool // the context that it was done under had ended
}

// Decrypt implements crypto.Decrypter. Its errors tell a malformed block, but not how it is:
// use UnwrapKey for what strangers send.
func (k *decryptingKey) Decrypt(_ io.Reader, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	ctx := context.Background()
	if opts == nil {
		opts = &rsa.PKCS1v15DecryptOptions{}
	}
	if o, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok && o.SessionKeyLen > 0 {
		return k.UnwrapKey(ctx, block, o.SessionKeyLen, opts)
	}
	opts, err := k.checkOptions(opts)
	if err != nil {
		return nil, err
	}
	if !k.inRange(block) {
		return nil, k.errorf("cannot decrypt: %w", rsa.ErrDecryption)
	}
	out, err := k.decrypt(ctx, block, opts)
	if err != nil && !says(ctx, err) {
		err = rsa.ErrDecryption
	}
	if err != nil {
		return nil, k.errorf("cannot decrypt: %w", err)
	}
	return out, nil
}

// UnwrapKey implements scep.Unwrapper.
func (k *decryptingKey) UnwrapKey(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, k.errorf("was not used: %w", context.Cause(ctx))
	}
	size := k.size()
	if n < 1 || n > size-11 {
		return nil, k.errorf("cannot hold a key of %d bytes in a block of %d: %w", n, size, ErrUnsupported)
	}
	opts, err := k.checkOptions(opts)
	if err != nil {
		return nil, err
	}
	out := make([]byte, n)
	rand.Read(out)

	// The device would refuse a block that is out of range before the arithmetic, and so at
	// once. It gets another one in its place, and what comes of that is not looked at.
	good := 1
	if !k.inRange(block) {
		block = make([]byte, size)
		rand.Read(block[1:])
		good = 0
	}
	got, err := k.unwrap(ctx, block, n, opts)
	if err != nil && says(ctx, err) {
		return nil, k.errorf("cannot decrypt: %w", err)
	}
	// Some devices report bad padding as an error, some as success with bytes of their own.
	if err != nil || len(got) != n {
		got, good = out, 0
	}
	subtle.ConstantTimeCopy(good, out, got)
	return out, nil
}

// says reports whether err, which came under ctx, is about the device and not about a block.
func says(ctx context.Context, err error) bool {
	if ctx.Err() != nil { // for a cause of the caller's own making, which err may be
		return true
	}
	for _, target := range []error{ErrUnavailable, ErrPIN, ErrUnsupported, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, target) {
			return true
		}
	}
	return false
}

// unwrap decrypts a block that should hold n bytes.
func (k *decryptingKey) unwrap(ctx context.Context, block []byte, n int, opts crypto.DecrypterOpts) ([]byte, error) {
	u, ok := k.device().(Unwrapper)
	if !ok {
		return k.decrypt(ctx, block, opts)
	}
	got, err := u.UnwrapKey(ctx, block, n, opts)
	if err != nil && !says(ctx, err) {
		err = fmt.Errorf("%w: %w", err, ErrUnavailable)
	}
	return got, err
}

func (k *decryptingKey) decrypt(ctx context.Context, block []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	if k.o.Proof > 0 {
		if err := k.prove(ctx); err != nil {
			return nil, err
		}
	}
	return k.device().Decrypt(ctx, block, opts)
}

// prove decrypts a block of our own unless that was done lately. Of concurrent callers one does
// it, and the others wait.
func (k *decryptingKey) prove(ctx context.Context) error {
	for {
		k.mu.Lock()
		if time.Since(k.proven) < k.o.Proof {
			k.mu.Unlock()
			return nil
		}
		p := k.running
		mine := p == nil
		if mine {
			p = &proof{done: make(chan struct{})}
			k.running = p
		}
		k.mu.Unlock()

		if mine {
			k.finish(ctx, p)
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		switch {
		case p.err == nil:
			return nil
		case p.ended && !mine:
			continue // that was the end of somebody else's request
		case !says(ctx, p.err):
			return fmt.Errorf("%v: %w", p.err, ErrUnavailable)
		}
		return p.err
	}
}

// finish makes the proof p, which is the running one, also if the device panics.
func (k *decryptingKey) finish(ctx context.Context, p *proof) {
	begun := time.Now()
	p.err = ErrUnavailable
	defer func() {
		p.ended = ctx.Err() != nil
		k.mu.Lock()
		k.running = nil
		if p.err == nil {
			k.proven = begun
		}
		k.mu.Unlock()
		close(p.done)
	}()
	p.err = k.try(ctx)
}

// try decrypts a block of our own.
func (k *decryptingKey) try(ctx context.Context) error {
	secret := make([]byte, 16)
	rand.Read(secret)
	block, err := rsa.EncryptPKCS1v15(rand.Reader, k.pub.(*rsa.PublicKey), secret)
	if err != nil {
		return err
	}
	var got []byte
	if u, ok := k.device().(Unwrapper); ok {
		got, err = u.UnwrapKey(ctx, block, len(secret), &rsa.PKCS1v15DecryptOptions{})
	} else if p, ok := k.device().(Prover); ok {
		got, err = p.DecryptOwn(ctx, block, &rsa.PKCS1v15DecryptOptions{})
	} else {
		got, err = k.device().Decrypt(ctx, block, &rsa.PKCS1v15DecryptOptions{})
	}
	if err != nil {
		return err
	}
	if !bytes.Equal(got, secret) {
		return errors.New("a block was decrypted to something else than was encrypted")
	}
	return nil
}

func (k *decryptingKey) size() int { return k.pub.(*rsa.PublicKey).Size() }

// inRange reports whether block is a number below the modulus, written as it must be.
func (k *decryptingKey) inRange(block []byte) bool {
	pub := k.pub.(*rsa.PublicKey)
	return len(block) == pub.Size() && bytes.Compare(block, pub.N.FillBytes(make([]byte, pub.Size()))) < 0
}

// checkOptions returns opts as a Device takes them.
func (k *decryptingKey) checkOptions(opts crypto.DecrypterOpts) (crypto.DecrypterOpts, error) {
	switch opts := opts.(type) {
	case *rsa.PKCS1v15DecryptOptions:
		return &rsa.PKCS1v15DecryptOptions{}, nil
	case *rsa.OAEPOptions:
		if !KnownHash(opts.Hash) || opts.MGFHash != 0 && !KnownHash(opts.MGFHash) {
			return nil, k.errorf("does not decrypt OAEP with %v: %w", opts.Hash, ErrUnsupported)
		}
		return opts, nil
	}
	return nil, k.errorf("does not know the decryption options %T: %w", opts, ErrUnsupported)
}
