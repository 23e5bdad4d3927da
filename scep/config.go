package scep

import (
	"log/slog"
	"time"
)

// Config says what a [Handler] is made of. CA, Depot and Challenge are required; every
// other field is safe when zero.
type Config struct {
	// CA signs certificates. See the backend packages.
	CA CA

	// Depot remembers requests and certificates. See the depot packages.
	Depot Depot

	// Challenge decides who may enrol. There is no default: to admit everyone, write a
	// [ChallengeFunc] that says so.
	Challenge Challenge

	// RA opens requests and signs replies. Its certificate is issued by CA (see file.RA). If nil, CA must be an [*Identity] whose RSA key can do both, and
	// whose certificate allows digitalSignature and keyEncipherment.
	RA *Identity

	// PastRA still open what devices sealed before RA was replaced. Replies to those are
	// signed by the one that was addressed.
	PastRA []*Identity

	// Responder signs replies in place of RA, where one key must not have two uses.
	Responder *Identity

	// Policy shapes certificates. If nil, a zero [Profile] does.
	Policy Policy

	// Profile names this CA and policy in the depot. Handlers over one depot that serve
	// different CAs or policies need different names: a certificate is renewed, and a
	// transaction is polled, only under the name it was made under.
	Profile string

	// Renewal has the rules for renewal by certificate. Zero: off.
	Renewal Renewal

	// Chain says which certificates GetCACert returns.
	Chain ChainMode

	// Legacy admits algorithms that only old devices need. Zero admits none.
	Legacy Legacy

	// AnySigner admits requests whose message is signed by another self-made key than
	// the one in the CSR, for proxies that sign for devices. Their replies, with the
	// certificate, go to the signer. Somebody who intercepts a message could re-sign it
	// and so use up its challenge.
	AnySigner bool

	// ReplyChain puts CA.Chain into replies after the issued certificate, for the few clients
	// (Cisco VPN) that want it. Most want the issued one alone.
	ReplyChain bool

	// NoFailInfoText leaves failInfoText out of refusals.
	NoFailInfoText bool

	// AbsentContent leaves eContent out of FAILURE and PENDING, which is the letter of
	// RFC 8894, 3.2. Otherwise it is there and empty: certmonger and openssl need that.
	AbsentContent bool

	// RetryWindow is how long after a request was decided the same message gets the same
	// answer. After that it is a new request, judged afresh. If zero, 24 hours.
	RetryWindow time.Duration

	// Events are told what happened.
	Events Events

	// Log receives one record per request: refusals at Info, our own failures at Error.
	// If nil, [slog.Default] is used.
	Log *slog.Logger

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time

	// Limits bound what one request, and all together, may use.
	Limits Limits
}

// Renewal has the rules by which a certificate that this CA issued authorises its own
// renewal, in place of the challenge. Always: the message is signed by that certificate,
// which is in the depot under the same profile, valid and not revoked; the CSR has the same
// subject and no name that the certificate has not. The zero Renewal is off.
type Renewal struct {
	// On admits renewals.
	On bool

	// Window is how long before its end a certificate may be renewed. If zero, the last
	// third of its life.
	Window time.Duration

	// Anytime admits renewals from the first moment on, whatever Window says.
	Anytime bool

	// Grace is how long after its end a certificate may still be renewed.
	Grace time.Duration

	// Max is how many renewals one certificate may authorise, for a device that loses what
	// it was sent; if zero, 10. Negative: any number.
	Max int

	// NewKey refuses a CSR for the key that the certificate has.
	NewKey bool

	// Challenge asks Config.Challenge as well.
	Challenge bool
}

// A ChainMode says which certificates GetCACert returns.
type ChainMode uint8

const (
	// ChainAuto is the bare certificate if a self-signed CA does everything, and otherwise
	// ChainRoot.
	ChainAuto ChainMode = iota

	// ChainSingle is one bare certificate: that of the RA, or of the CA if there is none.
	ChainSingle

	// ChainIssuer is a certs-only message with the RA's certificate and the issuing CA's.
	ChainIssuer

	// ChainFull is a certs-only message with the RA's certificate, the issuing CA's and
	// its issuers, without the root.
	ChainFull

	// ChainRoot is ChainFull with the root, if CA.Chain has it.
	ChainRoot
)

// Legacy is a set of algorithms that RFC 8894 discourages or forbids.
type Legacy uint8

const (
	// TripleDES admits, advertises and answers in DES-EDE3-CBC.
	TripleDES Legacy = 1 << iota

	// SHA1 admits, advertises and answers with SHA-1 message digests, and admits it in the
	// signature of a CSR. Never in certificates.
	SHA1

	// SingleDES opens requests in DES-CBC, as micromdm's scepclient sends. It is never
	// advertised and never sent: such requests are answered in AES.
	SingleDES
)

// Limits bound what requests may use. Each zero field has a default.
type Limits struct {
	// Bytes is the size of one message; if zero, 64 KiB.
	Bytes int64

	// Time is how long one request may take, from the last byte read; if zero, 30 seconds.
	// The CA has three quarters of it to sign; the rest is for telling the client to poll.
	Time time.Duration

	// ReadTime is how long a client may take to send its message; if zero, 15 seconds.
	ReadTime time.Duration

	// Keys is how many operations a private key does at once; if zero, as many as there
	// are processors, and at least 2. The others wait in order of arrival.
	Keys int

	// Requests is how many requests may be under way at once; if zero, 512. Beyond that
	// the answer is 503 with Retry-After.
	Requests int
}
