package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/scepclient"
)

func (c *command) caps(ctx context.Context) error {
	caps, err := c.client.Capabilities(ctx)
	if err != nil {
		return err
	}
	for _, k := range caps.Keywords {
		fmt.Fprintln(c.stdout, k)
	}
	suite, err := c.client.Choose(caps)
	if err != nil {
		return err
	}
	method := "GET"
	if suite.POST {
		method = "POST"
	}
	fmt.Fprintf(c.stderr, "This client uses %s with %s, by %s.\n", suite.Cipher, suite.Hash, method)
	return nil
}

func (c *command) cacert(ctx context.Context) error {
	ca, err := c.client.CACertificates(ctx)
	if err != nil {
		return err
	}
	for _, cert := range ca.Certificates {
		fmt.Fprintf(c.stdout, "subject      %s\nissuer       %s\nuntil        %s\nfingerprint  %s\n%s",
			plain(cert.Subject), plain(cert.Issuer), cert.NotAfter.UTC().Format(time.RFC3339), scepclient.Fingerprint(cert), certificatePEM(cert))
	}
	if !ca.Authenticated {
		fmt.Fprintln(c.stderr, "Nobody has vouched for these: compare a fingerprint with one that you know to be right.")
	}
	return nil
}

func (c *command) enroll(ctx context.Context) error {
	tmpl := &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: c.cn},
		DNSNames: c.dns, EmailAddresses: c.email,
	}
	if c.organization != "" {
		tmpl.Subject.Organization = []string{c.organization}
	}
	for _, s := range c.ip {
		ip := net.ParseIP(s)
		if ip == nil {
			return fmt.Errorf("-ip %s is no IP address", s)
		}
		tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
	}
	for _, s := range c.uri {
		u, err := url.Parse(s)
		if err != nil {
			return fmt.Errorf("-uri %s: %w", s, err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	if c.cn == "" && len(c.dns)+len(c.email)+len(c.ip)+len(c.uri) == 0 {
		return errors.New("a certificate needs a name: give -cn, -dns, -email, -ip or -uri")
	}
	secret, err := c.secret()
	if err != nil {
		return err
	}
	key, err := c.newKey(c.keyFile)
	if err != nil {
		return err
	}
	w := &waiting{SignerKey: c.out.key(), Staged: c.out.staged}
	if c.keyFile != "" {
		w.Key, w.SignerKey = c.keyFile, c.keyFile
	}
	return c.ask(ctx, w, func() (*scepclient.Result, error) {
		return c.client.Enroll(ctx, scepclient.Request{Key: key, Template: tmpl, Challenge: secret, TransactionID: transactionID(key)})
	})
}

func (c *command) renew(ctx context.Context) error {
	certs, err := readCertificates(c.certFile)
	if err != nil {
		return err
	}
	oldKey, err := readKey(c.keyFile)
	if err != nil {
		return err
	}
	secret, err := c.secret()
	if err != nil {
		return err
	}
	key, err := c.newKey("")
	if err != nil {
		return err
	}
	return c.ask(ctx, &waiting{SignerKey: c.keyFile, Staged: c.out.staged}, func() (*scepclient.Result, error) {
		return c.client.Renew(ctx, certs[0], oldKey, scepclient.Request{
			Key: key, Challenge: secret, TransactionID: transactionID(key), RenewAsPKCSReq: c.asPKCSReq,
		})
	})
}

func (c *command) poll(ctx context.Context) error {
	w, err := c.out.readWaiting()
	if err != nil {
		return err
	}
	c.out.staged = w.Staged
	key, err := readKey(w.SignerKey)
	if err != nil {
		return err
	}
	return c.ask(ctx, w, func() (*scepclient.Result, error) {
		return c.client.Poll(ctx, w.Pending, key)
	})
}

// secret returns the challenge.
func (c *command) secret() (scep.Secret, error) {
	if c.challengeFile == "" {
		if c.challenge == "" {
			c.challenge = os.Getenv("SCEP_CHALLENGE")
		}
		return scep.NewSecret(c.challenge), nil
	}
	if c.challenge != "" {
		return scep.Secret{}, errors.New("give -challenge or -challenge-file, not both")
	}
	text, err := os.ReadFile(c.challengeFile)
	if err != nil {
		return scep.Secret{}, err
	}
	secret := scep.NewSecret(strings.TrimRight(string(text), "\r\n"))
	if secret.Empty() {
		return secret, fmt.Errorf("%s is empty", c.challengeFile)
	}
	return secret, nil
}

// newKey returns the key for which a certificate is wanted: that in the file, or that which an
// earlier call has left behind, or a new one, which is on disk before anybody is asked.
func (c *command) newKey(file string) (*rsa.PrivateKey, error) {
	if err := c.out.prepare(c.force); err != nil {
		return nil, err
	}
	if file != "" {
		return readKey(file)
	}
	if _, err := os.Stat(c.out.key()); err == nil {
		fmt.Fprintf(c.stderr, "Using %s, which is there without a certificate.\n", c.out.key())
		return readKey(c.out.key())
	}
	bits, ok := map[string]int{"rsa2048": 2048, "rsa3072": 3072, "rsa4096": 4096}[c.keyType]
	if !ok {
		return nil, fmt.Errorf("-key-type %s: use rsa2048, rsa3072 or rsa4096", c.keyType)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, err
	}
	return key, c.out.writeKey(key)
}

// transactionID names the request after its key, so that asking again after a lost answer, or
// after a crash, is the same request.
func transactionID(key crypto.Signer) string {
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(der)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// ask calls the server, again if it has no time, and writes what comes of it. w says where the
// keys are.
func (c *command) ask(ctx context.Context, w *waiting, call func() (*scepclient.Result, error)) error {
	c.client.OnPending = func(p *scepclient.Pending, poll int, next time.Duration) {
		w.Pending = p
		if err := c.out.writeWaiting(w); err != nil {
			fmt.Fprintln(c.stderr, "enroll:", err)
		}
		fmt.Fprintf(c.stderr, "Waiting for approval: poll %d of %d in %v.\n", poll, c.retries, next)
	}
	var pending *scepclient.PendingError
	var busy *scepclient.UnavailableError
	var refused *scepclient.FailureError
	result, err := call()
	for try := 0; try < c.retries && errors.As(err, &busy) && !errors.As(err, &pending); try++ {
		pause := busy.RetryAfter
		if pause <= 0 {
			pause = c.client.RetryDelay
		}
		fmt.Fprintf(c.stderr, "The server has no time; trying again in %v.\n", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
		result, err = call()
	}
	switch {
	case errors.As(err, &pending):
		w.Pending = pending.Pending
		if err := c.out.writeWaiting(w); err != nil {
			return err
		}
		if pending.Err != nil && ctx.Err() == nil {
			fmt.Fprintln(c.stderr, "enroll:", pending.Err)
		}
		fmt.Fprintf(c.stderr, "The request waits for approval. To go on: enroll poll -out %s\n", c.out.name)
		return errPending
	case errors.As(err, &refused):
		return errors.Join(err, c.out.removeWaiting())
	case err != nil:
		return err
	}
	if err := c.out.finish(result.Certificate, w.Key); err != nil {
		return err
	}
	fmt.Fprintf(c.stdout, "%s.pem: %s, serial number %x, valid until %s\n", c.out.name, plain(result.Certificate.Subject),
		result.Certificate.SerialNumber, result.Certificate.NotAfter.UTC().Format(time.RFC3339))
	return nil
}

// plain returns a name that is safe to show on a terminal.
func plain(name pkix.Name) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return '?'
		}
		return r
	}, name.String())
}
