package scep

import (
	"context"
	"crypto/x509"
)

// A Policy turns a verified request into the certificate to be signed, or refuses it as a
// [Challenge] does. Methods may be called concurrently.
type Policy interface {
	// Template returns what is to be signed, or an error with the meanings that those of
	// Challenge.Validate have. Names, dates, usages and extensions count; issuer, serial
	// number, key and key identifiers are set by the server, which also sees to it that
	// the certificate does not outlive the CA and is not a CA itself.
	//
	// Returned ExtraExtensions replace those made from other fields, as in
	// [x509.CreateCertificate].
	Template(ctx context.Context, req *Request) (*x509.Certificate, error)
}

// PolicyFunc makes a [Policy] of a func.
type PolicyFunc func(ctx context.Context, req *Request) (*x509.Certificate, error)

// Template calls f.
func (f PolicyFunc) Template(ctx context.Context, req *Request) (*x509.Certificate, error) {
	return f(ctx, req)
}
