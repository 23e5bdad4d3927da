package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/examples/internal/newfile"
	"github.com/scepkit/scepkit/scep"
)

const year = 365 * 24 * time.Hour

// with calls f with the key, which may have no certificate.
func (c *command) with(ctx context.Context, f func(*backend.Key) error) error {
	k, err := backend.OpenKey(ctx, c.key, c.drivers...)
	if err != nil {
		return err
	}
	c.record.Key = recordKey(k)
	return errors.Join(f(k), k.Close())
}

func (c *command) create(ctx context.Context) error {
	k, err := backend.Create(ctx, c.key, backend.Spec{KeyType: c.keyType, Decrypt: c.decrypt}, c.drivers...)
	if err != nil {
		return err
	}
	c.record.Key = recordKey(k)
	c.show(k)
	c.warn(weaknesses(c.key, k)...)
	return k.Close()
}

func (c *command) options() backend.CAOptions {
	o := backend.CAOptions{Subject: pkix.Name{CommonName: c.cn}, Validity: time.Duration(c.years) * year}
	if c.o != "" {
		o.Subject.Organization = []string{c.o}
	}
	if c.country != "" {
		o.Subject.Country = []string{c.country}
	}
	return o
}

func (c *command) selfSign(ctx context.Context) error {
	err := c.with(ctx, func(k *backend.Key) error {
		if cert := k.Certificate(); cert != nil {
			return fmt.Errorf("the key has a certificate, of %q (SHA-256 %s); nothing is overwritten: %w", cert.Subject, fingerprint(cert.Raw), fs.ErrExist)
		}
		cert, err := backend.SelfSign(ctx, k.Key, c.options())
		if err != nil {
			return err
		}
		return backend.Import(ctx, c.key, []*x509.Certificate{cert}, false, c.drivers...)
	})
	if err != nil {
		return err
	}
	return c.check(ctx)
}

func (c *command) csr(ctx context.Context) error {
	if _, err := os.Lstat(c.out); err == nil {
		return fmt.Errorf("%s is there; nothing is overwritten: %w", c.out, fs.ErrExist)
	}
	return c.with(ctx, func(k *backend.Key) error {
		der, err := backend.Request(ctx, k.Key, c.options())
		if err != nil {
			return err
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
		if err := newfile.Write(c.out, text, 0o644); err != nil {
			return err
		}
		c.record.Request = fingerprint(der)
		c.show(k)
		c.line("request", "%s, SHA-256 %s", c.out, c.record.Request)
		return nil
	})
}

// store is the command import.
func (c *command) store(ctx context.Context) error {
	certs, err := readCertificates(c.files)
	if err != nil {
		return err
	}
	if problems := flaws(certs); len(problems) > 0 {
		c.record.Problems = problems
		return fmt.Errorf("%s; nothing was imported", problems[0])
	}
	k, err := backend.OpenKey(ctx, c.key, c.drivers...)
	if err == nil {
		c.record.Key = recordKey(k)
		if old := k.Certificates; c.replace && len(old) > 0 {
			c.record.Replaced = recordCertificates(old)
			c.line("replaced", "%s", certificate(old[0]))
		}
		err = k.Close()
	} else if c.replace {
		err = nil // it may be the certificates that are wrong
	}
	if err != nil {
		return err
	}
	if err := backend.Import(ctx, c.key, certs, c.replace, c.drivers...); err != nil {
		return err
	}
	return c.check(ctx)
}

func readCertificates(files []string) (certs []*x509.Certificate, err error) {
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		before := len(certs)
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type != "CERTIFICATE" {
				continue
			}
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			certs = append(certs, cert)
		}
		if len(certs) == before {
			return nil, fmt.Errorf("%s has no certificate in PEM", name)
		}
	}
	return certs, nil
}

// makeRA is the command ra.
func (c *command) makeRA(ctx context.Context) (err error) {
	issuing, err := backend.Open(ctx, c.ca, c.drivers...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, issuing.Close()) }()
	c.record.CA = recordKey(issuing)
	watched := &lastIssued{CA: issuing}
	ra, past, err := backend.RA(ctx, watched, c.key, c.keyType, backend.RAOptions{Validity: time.Duration(c.years) * year}, c.drivers...)
	if err != nil {
		return err
	}
	defer func() {
		for _, k := range append(past, ra) {
			err = errors.Join(err, k.Close())
		}
	}()
	for _, k := range past {
		if k.Certificate().Equal(watched.cert) {
			c.line("ra", "new certificate, which takes over in a day or less")
			return c.examine(ctx, k)
		}
	}
	if watched.cert != nil {
		c.line("ra", "new certificate")
	} else {
		c.line("ra", "not due for renewal")
	}
	return c.examine(ctx, ra)
}

// lastIssued remembers what a CA issued last.
type lastIssued struct {
	scep.CA
	cert *x509.Certificate
}

func (l *lastIssued) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (cert *x509.Certificate, err error) {
	l.cert, err = l.CA.Sign(ctx, tmpl, pub)
	return l.cert, err
}
