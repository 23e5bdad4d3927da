// Package scepclient is a SCEP client (RFC 8894).
//
// Fill in a [Client] and call
//
//   - [Client.Enroll] to get a first certificate, authorised by a challenge password,
//   - [Client.Renew] to get the next one, authorised by the certificate that there is,
//   - [Client.Poll] to go on with a request that had to wait for a person, perhaps in another
//     process and days later, from the [Pending] that was kept,
//   - [Client.GetCert] to get a certificate of one's own once more,
//   - [Client.GetCRL] to get the CRL,
//   - [Client.NextCA] to learn in time of the CA that will take over.
//
// [Client.Capabilities] and [Client.CACertificates] show what a server says of itself; the
// others ask it by themselves.
//
// SCEP has no other protection against a false server than that the client knows the CA beforehand,
// so give Client.Fingerprints or Client.Roots. Without them nothing is sent that others should
// not have.
//
// A request that the server refuses is a [*FailureError], one that waits is a [*PendingError],
// and a server that has no time is an [*UnavailableError].
package scepclient

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A Client talks to one SCEP service. URL is required, and Fingerprints or Roots for all that
// sends a message; the other fields are safe when zero. Methods may be called concurrently,
// but fields must not be changed meanwhile.
type Client struct {
	// URL is that of the service. If it has no path at all, /cgi-bin/pkiclient.exe is
	// appended (RFC 8894, 4.1). A query that it has is kept.
	URL string

	// HTTP sends the requests. If nil, a client that gives each of them a minute and follows
	// redirects only within the same host, and none that answer a message.
	HTTP *http.Client

	// Fingerprints authenticate the CA: SHA-256, in hexadecimal, of a certificate in the answer
	// to GetCACert, in either case, with or without colons and blanks. One that matches is
	// enough. With that of a CA certificate, all that chains to it is trusted, as an RA too
	// unless its extKeyUsage is for something else; with that of an RA certificate, that RA alone. SHA-1 fingerprints need Legacy to have [scep.SHA1].
	Fingerprints []string

	// Roots authenticate the CA as Fingerprints do, by certificates that were given out of band.
	// They need not be in the answer to GetCACert.
	Roots []*x509.Certificate

	// InsecureAnyCA takes whatever CA answers if there are no Fingerprints and no Roots. Whoever
	// is between client and server then learns the challenge password.
	InsecureAnyCA bool

	// Name is a CA identifier, sent with GetCACaps and GetCACert for servers that have several
	// CAs. Microsoft's NDES needs one, whichever.
	Name string

	// Legacy admits [scep.TripleDES] and [scep.SHA1], which are used with servers that offer
	// nothing better. There is nothing below them.
	Legacy scep.Legacy

	// Hash is that of messages and CSRs: crypto.SHA256, crypto.SHA384 or crypto.SHA512. If zero,
	// SHA-256, unless the server only has others.
	Hash crypto.Hash

	// Retries is how often at most a request that waits is polled for. If zero, 3. Negative:
	// not at all.
	Retries int

	// RetryDelay is the time before each of these polls. If zero, 10 seconds.
	RetryDelay time.Duration

	// OnPending, if not nil, is told of each wait before it begins: the request that waits, which
	// poll comes next, counted from 1, and after what time. The first call is the moment to write
	// p to disk.
	OnPending func(p *Pending, poll int, next time.Duration)

	// MaxBytes is the size of an answer. If zero, 1 MiB.
	MaxBytes int64

	// Log, if not nil, receives a record of each step. It never has a secret.
	Log *slog.Logger

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time

	wait func(ctx context.Context, d time.Duration) error // tests do not sleep
}

// check reports the first field that cannot work.
func (c *Client) check() error {
	if _, err := c.base(); err != nil {
		return err
	}
	for _, text := range c.Fingerprints {
		if _, err := c.parseFingerprint(text); err != nil {
			return err
		}
	}
	for _, root := range c.Roots {
		if root == nil {
			return errors.New("scepclient: Client.Roots holds nil")
		}
	}
	if c.Legacy&^(scep.TripleDES|scep.SHA1) != 0 {
		return errors.New("scepclient: Client.Legacy may hold scep.TripleDES and scep.SHA1 only: nothing weaker is used")
	}
	switch c.Hash {
	case 0, crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("scepclient: Client.Hash is %v; use crypto.SHA256, crypto.SHA384 or crypto.SHA512", c.Hash)
	}
	if c.MaxBytes < 0 || c.RetryDelay < 0 {
		return errors.New("scepclient: Client.MaxBytes or Client.RetryDelay is negative")
	}
	return nil
}

// checkPins refuses to go on if nothing would tell the CA from another.
func (c *Client) checkPins() error {
	if err := c.check(); err != nil {
		return err
	}
	if !c.pinned() && !c.InsecureAnyCA {
		return errors.New("scepclient: nothing authenticates the CA: set Client.Fingerprints to the SHA-256 fingerprint of its certificate, or Client.Roots (or Client.InsecureAnyCA, which tells the challenge to whoever answers)")
	}
	return nil
}

func (c *Client) pinned() bool { return len(c.Fingerprints) > 0 || len(c.Roots) > 0 }

// base returns the URL of the service.
func (c *Client) base() (*url.URL, error) {
	if c.URL == "" {
		return nil, errors.New("scepclient: Client.URL is empty: set it to the URL of the SCEP service")
	}
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, fmt.Errorf("scepclient: Client.URL: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("scepclient: Client.URL %q must begin with http:// or https:// and a host", u.Redacted())
	}
	if u.Path == "" {
		u.Path = "/cgi-bin/pkiclient.exe"
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

func (c *Client) now() time.Time {
	if c.Time != nil {
		return c.Time()
	}
	return time.Now()
}

func (c *Client) maxBytes() int64 {
	if c.MaxBytes == 0 {
		return 1 << 20
	}
	return c.MaxBytes
}

func (c *Client) retries() int {
	switch {
	case c.Retries == 0:
		return 3
	case c.Retries < 0:
		return 0
	}
	return c.Retries
}

func (c *Client) retryDelay() time.Duration {
	if c.RetryDelay == 0 {
		return 10 * time.Second
	}
	return c.RetryDelay
}

func (c *Client) debug(ctx context.Context, msg string, attrs ...slog.Attr) {
	if c.Log != nil {
		c.Log.LogAttrs(ctx, slog.LevelDebug, "scepclient: "+msg, attrs...)
	}
}

// sleep waits for d, or until ctx ends.
func (c *Client) sleep(ctx context.Context, d time.Duration) error {
	if c.wait != nil {
		return c.wait(ctx, d)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A contextSigner is a key whose signatures can be waited for with a context.
type contextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// A boundSigner signs with the context of one call, in which it is used.
type boundSigner struct {
	contextSigner
	public crypto.PublicKey
	ctx    context.Context
}

func bind(ctx context.Context, key crypto.Signer) crypto.Signer {
	if s, ok := key.(contextSigner); ok {
		return boundSigner{s, key.Public(), ctx}
	}
	return key
}

func (s boundSigner) Public() crypto.PublicKey { return s.public }

func (s boundSigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return s.SignContext(s.ctx, rand, digest, opts)
}
