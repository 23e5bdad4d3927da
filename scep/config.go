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

	// RA opens requests and signs replies. Its certificate is issued by CA (see file.RA
	// and backend.RA). If nil, CA must be an [*Identity] whose RSA key can do both, and whose
	// certificate allows digitalSignature and keyEncipherment.
	RA *Identity

	// PastRA open what devices sealed before RA was replaced, or sealed to one that another
	// server of the CA announces already. Replies to those are signed by the one that was
	// addressed. What is addressed to one that is a CA, it issues, as PastCA do.
	PastRA []*Identity

	// PastCA issue what is addressed to those of PastRA that they issued, until they have too
	// little time left; then CA does. Certificates that they issued can be renewed. An
	// [*Identity] without Key issues nothing, but its certificates can be renewed.
	PastCA []CA

	// Next will take over from CA. GetNextCACert tells of it (RFC 8894, 4.7), and what is
	// addressed to it, or to NextRA, it issues (RFC 8894, 5.1). An [*Identity] without Key is
	// told of, and opens and issues nothing. See [Switch] for how to take over.
	Next CA

	// NextRA opens requests for Next and signs the replies to them. If nil, Next must be an
	// [*Identity] that can do both, as with RA.
	NextRA *Identity

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

	// PasswordRecipients serves clients whose message is signed with a key that cannot decrypt
	// (ECDSA, Ed25519). Otherwise they are refused. The reply to PKCSReq and RenewalReq is
	// encrypted with the challenge password of the CSR (RFC 8894, 3.1; RFC 5652, 6.2.4), so a
	// request without one is refused, also a renewal. While it waits, such a client sends its
	// request again: a poll brings no password, and none is kept. Only a [Preparer] knows it.
	//
	// Whoever records a reply can try guesses at its password at leisure. Turn this on only
	// where challenges are long and random, best those of challenge.OneTime, which are spent by
	// then.
	//
	// If Challenge is a [Preparer], requests that are encrypted with their challenge password are
	// opened as well. Those give more away: who holds one back can use what he guesses.
	PasswordRecipients bool

	// ReplyChain puts CA.Chain into replies after the issued certificate, for the few clients
	// (Cisco VPN) that want it. Most want the issued one alone.
	ReplyChain bool

	// NoFailInfoText leaves failInfoText out of refusals.
	NoFailInfoText bool

	// AbsentContent leaves eContent out of FAILURE and PENDING, which is the letter of
	// RFC 8894, 3.2. Otherwise it is there and empty: certmonger and openssl need that.
	AbsentContent bool

	// CRL answers GetCRL, and says where certificates have their CRL; see package scep/status.
	// If nil, GetCRL is not offered.
	CRL CRLSource

	// RetryWindow is how long after a request was decided the same message gets the same
	// answer. After that it is a new request, judged afresh. If zero, 24 hours.
	RetryWindow time.Duration

	// ApprovalWindow is how long a request that [ErrPending] held back can be approved. After
	// that it is denied. If zero, 30 days.
	ApprovalWindow time.Duration

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

// A ChainMode says which certificates GetCACert returns, and GetNextCACert.
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

	// Keys is how many operations a private key does at once; if zero, as many as the key
	// says by a method Concurrency() int, as those in tokens do, and otherwise as many as
	// there are processors, and at least 2. The others wait in order of arrival.
	Keys int

	// Requests is how many requests may be under way at once; if zero, 512. Beyond that
	// the answer is 503 with Retry-After.
	Requests int

	// Pending is how many requests may wait for approval under Config.Profile; if zero, 10,000.
	// Beyond that the answer to new ones is 503 with Retry-After, and nothing of them is stored.
	// Those that have expired make room. Negative: any number, as always with a Depot that is no
	// [Lister] and so cannot be asked how many there are. It is asked once a second at most, and
	// for a twentieth of the time at most: replicas may together let in more, by what the others
	// let in meanwhile. Config.Challenge is asked first.
	Pending int
}
