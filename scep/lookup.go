package scep

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

// poll answers CertPoll: it goes on with the newest request of this transaction ID and key.
// There is no badCertId for others, because a poll is not opened, and might hold something else.
func (h *Handler) poll(ctx context.Context, in *inbound) (*outcome, error) {
	rec, err := h.c.Depot.Latest(ctx, h.transaction(in))
	if errors.Is(err, ErrNotFound) || err == nil && !h.current(rec) {
		return nil, refuse(BadRequest, ReasonUnknown, "no such transaction", nil)
	}
	if err != nil {
		return nil, fmt.Errorf("scep: looking up a transaction: %w", err)
	}
	if err := h.checkPoll(ctx, in, rec); err != nil {
		return nil, err
	}
	return h.resume(ctx, rec, Secret{})
}

// maxCRL is the size of the largest CRL that is sent over SCEP, where it is copied several times.
const maxCRL = 1 << 20

// getCRL answers GetCRL, to everybody: a CRL is no secret. It goes by the issuer's name. Some clients
// put the CA's own serial number in place of that of the certificate in question: they mean their own.
func (h *Handler) getCRL(ctx context.Context, in *inbound) (*outcome, error) {
	unknown := refuse(BadCertID, ReasonUnknown, "no such CRL", nil)
	if in.issuer == nil {
		return nil, unknown
	}
	serial := in.serial
	if signer := in.msg.Signer; bytes.Equal(signer.RawIssuer, in.issuer) && slices.ContainsFunc(h.cas, func(a *authority) bool {
		return bytes.Equal(a.cert().RawSubject, in.issuer) && a.cert().SerialNumber.Cmp(serial) == 0
	}) {
		serial = new(big.Int).SetBytes(signer.RawSerial)
	}
	crl, err := h.c.CRL.CRL(ctx, in.issuer, serial)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, unknown
	case err != nil:
		return nil, fmt.Errorf("scep: getting the CRL: %w", err)
	case len(crl) == 0:
		return nil, errors.New("scep: Config.CRL returned neither a CRL nor an error")
	case len(crl) > maxCRL:
		return nil, refuse(BadRequest, ReasonTooLarge, "the CRL is too large for SCEP; get it from its distribution point",
			fmt.Errorf("it has %d bytes; divide it into shards", len(crl)))
	}
	return &outcome{crl: crl}, nil
}

// getCert answers GetCert: a client gets its own certificate, which it shows by signing with
// that certificate's key, or with a valid certificate of the same subject.
func (h *Handler) getCert(ctx context.Context, in *inbound) (*outcome, error) {
	unknown := refuse(BadCertID, ReasonUnknown, "no such certificate", nil)
	rec, err := h.c.Depot.GetSerial(ctx, in.issuer, in.serial)
	if errors.Is(err, ErrNotFound) {
		return nil, unknown
	}
	if err != nil {
		return nil, fmt.Errorf("scep: looking up a certificate: %w", err)
	}
	out := &outcome{rec: rec}
	if rec.Profile != h.c.Profile || rec.State != Issued || rec.Unconfirmed {
		return out, unknown
	}
	if out.cert, err = x509.ParseCertificate(rec.Certificate); err != nil {
		return out, depotError("reading", rec.ID, err)
	}
	if h.issuerOf(out.cert) == nil { // a row that we did not write
		out.cert = nil
		return out, unknown
	}
	if equalKeys(in.signer, out.cert.PublicKey) {
		return out, nil
	}
	signer, err := h.ownCertificate(ctx, in.msg.Signer)
	if err != nil {
		return out, err
	}
	now := h.c.Time()
	if signer == nil || signer.rec.State != Issued || now.Before(signer.cert.NotBefore) || now.After(signer.cert.NotAfter) ||
		!bytes.Equal(signer.cert.RawSubject, out.cert.RawSubject) {
		out.cert = nil
		return out, unknown
	}
	return out, nil
}
