package scep

import (
	"bytes"
	"context"
	"math/big"
	"slices"
	"time"
)

// A Depot remembers every request let in and every certificate signed. Methods may be
// called concurrently, by any number of goroutines and, where the depot says so, processes.
// When Create or Update returns nil, the record survives a crash. When they return an error
// other than those named here, the change may or may not have happened; the caller reads
// back. Records passed in and out are copies: neither side sees the other's later changes.
//
// Package depot/depottest tests implementations.
type Depot interface {
	// Create stores rec, whose Version is 0, as version 1 and sets rec.Version to 1.
	// If another record has the ID, or the same Issuer and Serial, it returns
	// [ErrExists] and stores nothing. A nil Serial never collides.
	// An ID that is not [ID.Valid] is an error.
	Create(ctx context.Context, rec *Record) error

	// Update replaces the record that has rec.ID if its version is still rec.Version,
	// and adds one to it, there and in rec. Otherwise it returns [ErrStale], or
	// [ErrNotFound], and stores nothing. [ErrExists] as in Create.
	Update(ctx context.Context, rec *Record) error

	// Get returns the record with this ID, or [ErrNotFound].
	Get(ctx context.Context, id ID) (*Record, error)

	// Latest returns the record of this transaction that was created last, or
	// [ErrNotFound]. Of records with equal Created it is the one stored last.
	Latest(ctx context.Context, transaction ID) (*Record, error)

	// GetSerial returns the record of the certificate with this issuer name (DER, byte
	// for byte) and serial number, or [ErrNotFound].
	GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*Record, error)
}

// A Lister is a [Depot] that can list its records.
type Lister interface {
	// List returns the records that match q in the order of their IDs, or none.
	List(ctx context.Context, q Query) ([]*Record, error)
}

// A Query selects records. Its zero value selects the first hundred of all.
type Query struct {
	Profile *string // if not nil, only records of this profile
	State   State   // if not 0, only records in this state
	After   ID      // only records whose ID sorts after this one: the last of the page before
	Limit   int     // at most so many; 0 or less: 100
}

// A Scanner is a [Depot] that can read all its records in the order in which it keeps them. Where
// there are many that takes a fraction of the time that it takes to list them in the order of their
// IDs.
type Scanner interface {
	// Scan calls yield with all records, some at a time, in an order of the depot's own. done
	// says which part of them has been read when these have, from 0 to 1, more or less, and
	// never less than the time before. yield may call the depot, and keep what it is given. Its
	// error ends the scan and is returned as it is.
	//
	// What is there when Scan is called, and stays, comes once, as it is then or later, whatever
	// changes meanwhile. What is made or deleted meanwhile may come or not; however much is made,
	// Scan ends. It holds up nobody, however long yield takes.
	Scan(ctx context.Context, yield func(all []*Record, done float64) error) error
}

// A Loader is a [Depot] that can take in many records at once, in less time than one by one.
type Loader interface {
	// Load creates all of the records as Create does, or none: if one of them cannot be created
	// for that reason, or two are not apart, it returns [ErrExists] and stores nothing. When it
	// returns nil, all survive a crash; after another error all may be there, or none.
	Load(ctx context.Context, recs []*Record) error
}

// A Pruner is a [Depot] that can forget records.
type Pruner interface {
	// Prune deletes records that q selects, at most q.Limit of them, the oldest of each
	// kind first, and returns how many: 0 means that none are left. It holds up other
	// callers no longer than a few writes would; call it until it returns 0.
	//
	// Records that others depend on are kept, also when their time has come:
	//
	//   - while a later Generation of the same transaction is not selected, as a retry
	//     would not find that one any more;
	//   - while a record that Renews it is Pending, Signing or Unconfirmed;
	//   - if it is Issued or Revoked: while the record that it Renews is not before
	//     q.Expired, whose certificate could be renewed once more.
	Prune(ctx context.Context, q PruneQuery) (n int, err error)
}

// A PruneQuery selects records that need no longer be kept. Its zero value selects none.
//
// What has been forgotten is as if it had never been: a CRL does not list it, a device that
// polls is told that there is no such transaction, and a message that is sent again is a new
// request. So Expired should be before now by [Renewal].Grace at least, and by as long as a CRL
// is to list certificates that have ended; and each of the times by Config.RetryWindow at least,
// and by a day, for which challenge.OneTime admits the request that spent a challenge again. Of
// clocks that differ, allow for the difference. Package depot has a Retention that does this.
type PruneQuery struct {
	Expired   time.Time // if not zero: records that are Signing, Issued or Revoked, and whose NotAfter is before it
	Denied    time.Time // if not zero: records that are Denied, and whose Changed is before it
	Abandoned time.Time // if not zero: records that are Pending, and whose Changed is before it
	Limit     int       // at most so many; 0 or less: 1000
	DryRun    bool      // delete nothing; say how many there are, up to Limit
}

// An ID names a record, or a transaction: 64 lower-case hexadecimal digits, a hash over
// what the client sent. That includes the challenge password, so who can read a depot can try
// guesses at a weak one.
type ID string

// Valid reports whether id has the form that an ID must have. A depot refuses others; it
// does not sanitise them.
func (id ID) Valid() bool {
	if len(id) != 64 {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !('0' <= c && c <= '9' || 'a' <= c && c <= 'f') {
			return false
		}
	}
	return true
}

// A Record is the life of one request, from the moment it is let in.
type Record struct {
	ID          ID
	Transaction ID    // hash over Profile, TransactionID and the key that signed the message
	Version     int64 // counts the writes; 0 before the first

	Profile       string // Config.Profile of the handler that made the record
	TransactionID string // as the client chose it: any text
	Generation    int    // how often the same bytes had been a request before
	RemoteAddr    string // of the client, as net/http gives it
	Via           string // which challenge let it in, if there are several
	Renews        ID     // the record of the certificate that is being renewed, if any
	RenewedBy     []ID   // the records of renewals that this certificate has authorised; none while [Renewal].Max is negative

	State       State
	CSR         []byte   // DER, with the challenge password and the signature overwritten
	Issuer      []byte   // DER of the issuer's name; nil until there is a template
	Serial      *big.Int // nil until there is a template
	Template    []byte   // DER of an unsigned certificate (RFC 9925): what is, or will be, signed; of a Pending record only its issuer counts
	Certificate []byte   // DER, once Issued
	NotAfter    time.Time

	FailInfo FailInfo // of a denied record: what its client is told
	Reason   string   // of a denied record: what its client is told

	// Unconfirmed says that the certificate may not be handed out before a [Confirmer]
	// has agreed to it, if there still is one.
	Unconfirmed bool

	Revoked          time.Time // when State became Revoked
	RevocationReason int       // a [RevocationReason]
	Unrevoked        time.Time // when a hold was last lifted

	DecidedBy string // who approved, denied, revoked or unrevoked last, as the program knows them
	Remark    string // why, for people; no client is told

	Created, Changed time.Time // depots keep microseconds at least, and no time zone
}

// Clone returns a copy of r that shares nothing with it.
func (r *Record) Clone() *Record {
	c := *r
	c.RenewedBy = slices.Clone(r.RenewedBy)
	c.CSR = bytes.Clone(r.CSR)
	c.Issuer = bytes.Clone(r.Issuer)
	c.Template = bytes.Clone(r.Template)
	c.Certificate = bytes.Clone(r.Certificate)
	if r.Serial != nil {
		c.Serial = new(big.Int).Set(r.Serial)
	}
	return &c
}

// A State is where a record stands.
type State uint8

const (
	Pending State = iota + 1 // waiting for a person
	Signing                  // written down, about to be signed
	Issued
	Denied
	Revoked
)

var stateNames = [...]string{"none", "pending", "signing", "issued", "denied", "revoked"}

// String returns the state's name in lower case.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return "unknown"
}

// A RevocationLister is a [Depot] that can list what has been revoked, for CRLs. It costs as much
// as there are revoked certificates, not as much as there are records.
type RevocationLister interface {
	// Revocations calls yield with each revocation that q selects, once, in an order of
	// the depot's own that is the same while nothing changes. yield may call the depot,
	// and keep what it is given. Its error ends the listing and is returned as it is.
	//
	// What is revoked when Revocations is called, and stays so, is not missed. A record
	// without a serial number is left out.
	Revocations(ctx context.Context, q RevocationQuery, yield func(Revocation) error) error
}

// A RevocationQuery selects revocations of certificates with this issuer.
type RevocationQuery struct {
	// Issuer is the DER of the issuer's name, compared byte for byte.
	Issuer []byte

	// NotAfter, if not zero, leaves out certificates that ended before it.
	NotAfter time.Time

	// Since, if not zero, selects only what has changed then or later: records that are
	// Revoked and whose Changed is not before Since, and also those that are Issued again
	// and whose Unrevoked is not before Since.
	Since time.Time
}

// A Revocation is what a CRL says of a certificate.
type Revocation struct {
	Serial    *big.Int
	Revoked   time.Time        // zero if it has been unrevoked
	Reason    RevocationReason // 0 if it has been unrevoked
	Unrevoked time.Time        // zero unless it has been unrevoked
}

// A CRLSource has the CRL of a CA. Package scep/status implements it.
//
// If it also has a method
//
//	DistributionPoints(issuer []byte, serial *big.Int) []string
//
// that says which CRLDistributionPoints are written into a certificate, where the [Policy] sets
// none. If it has a method
//
//	Renew()
//
// that is called when the handler has revoked a certificate, or unrevoked it, and must return at once.
type CRLSource interface {
	// CRL returns the DER of the newest full CRL of the issuer with this name (DER) that
	// covers this serial number, or [ErrNotFound]. The serial number need not exist.
	CRL(ctx context.Context, issuer []byte, serial *big.Int) ([]byte, error)
}

// A ChallengeStore keeps one-time challenges for challenge.OneTime. A depot implements it so
// that challenges and records live, and are backed up, together; as a [Spender] it also keeps them
// from disagreeing. Methods may be called concurrently, and are as durable as those of [Depot].
type ChallengeStore interface {
	// PutChallenge stores c, which must be unspent. If limit is positive and that many
	// unspent challenges of the same profile have not expired at now, it returns
	// [ErrLimit]; concurrent calls never exceed the limit. If the hash is taken it
	// returns [ErrExists]. Challenges that expired before now may be forgotten, unless
	// they were spent less than [ChallengeMemory] ago.
	PutChallenge(ctx context.Context, c *OneTimeChallenge, now time.Time, limit int) error

	// GetChallenge returns the challenge with this hash, or [ErrNotFound].
	GetChallenge(ctx context.Context, hash ID) (*OneTimeChallenge, error)

	// SpendChallenge marks the challenge as spent by the record with ID by, and returns
	// who has spent it: by, if it was unspent or by had spent it before; otherwise
	// another record's ID, and nothing changes. Or [ErrNotFound].
	SpendChallenge(ctx context.Context, hash ID, by ID, now time.Time) (ID, error)
}

// ChallengeMemory is how long a [ChallengeStore] remembers at least who spent a challenge.
const ChallengeMemory = 30 * 24 * time.Hour

// A OneTimeChallenge is what a [ChallengeStore] keeps of a one-time challenge: not the
// challenge itself.
type OneTimeChallenge struct {
	Hash    ID     // of the challenge
	Profile string // the only profile for which it is good
	Subject string // if not empty: the only subject, as challenge.OneTime writes it
	SAN     string // if not empty: the only subject alternative names, as challenge.OneTime writes them
	Created time.Time
	Expires time.Time
	SpentBy ID // empty until spent
	Spent   time.Time
}
