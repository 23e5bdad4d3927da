package postgres

import (
	"context"
	"errors"
	"math/big"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/scepkit/scepkit/depot/internal/names"
	"github.com/scepkit/scepkit/scep"
)

// issuerNumber is 0 for no issuer, and NULL, which the table refuses, for a name that is not
// known yet. The number itself is not cached: a server that is restored or replaced may give
// another.
const issuerNumber = `CASE WHEN $27::bytea IS NULL THEN 0 ELSE (SELECT number FROM issuer WHERE name = $27) END`

const (
	intoRecord = `INSERT INTO record (id, latest, trans, state, profile, created, changed, serial, not_after, revoked,
		revocation_reason, unconfirmed, generation, renews, fail_info, reason, via, remote_addr, transaction_id,
		subject, san, renewed_by, csr, template, certificate, version, origin, issuer,
		unrevoked, decided_by, remark)`

	newRecord = `$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
		$26::bigint + 1, $2, ` + issuerNumber + `, $28, $29, $30`

	insertRecord = intoRecord + ` VALUES (` + newRecord + `) ON CONFLICT DO NOTHING`

	// A large column that has not changed is set to itself, which writes nothing.
	updateRecord = `UPDATE record SET latest = $2, trans = $3, state = $4, profile = $5, created = $6, changed = $7,
		serial = $8, not_after = $9, revoked = $10, revocation_reason = $11, unconfirmed = $12, generation = $13,
		renews = $14, fail_info = $15, reason = $16, via = $17, remote_addr = $18, transaction_id = $19,
		subject = $20, san = $21, renewed_by = $22,
		csr = CASE WHEN csr IS DISTINCT FROM $23 THEN $23 ELSE csr END,
		template = CASE WHEN template IS DISTINCT FROM $24 THEN $24 ELSE template END,
		certificate = CASE WHEN certificate IS DISTINCT FROM $25 THEN $25 ELSE certificate END,
		version = version + 1, issuer = ` + issuerNumber + `, unrevoked = $28, decided_by = $29, remark = $30
		WHERE id = $1 AND version = $26`

	insertIssuer = `INSERT INTO issuer (name) SELECT $1 WHERE NOT EXISTS (SELECT 1 FROM issuer WHERE name = $1) ON CONFLICT DO NOTHING`

	// whoWrote tells which write a record is from.
	whoWrote = `SELECT version, origin, latest FROM record WHERE id = $1`

	ofRecord = `id, trans, version, state, profile, created, changed,
		(SELECT name FROM issuer WHERE number = record.issuer), serial, not_after, revoked,
		revocation_reason, unconfirmed, generation, renews, fail_info, reason, via, remote_addr,
		transaction_id, csr, template, renewed_by, certificate,
		unrevoked, decided_by, remark`

	selectRecord = `SELECT ` + ofRecord + ` FROM record`

	getRecord    = selectRecord + ` WHERE id = $1`
	latestRecord = selectRecord + ` WHERE trans = $1 ORDER BY created DESC NULLS LAST, stored DESC LIMIT 1`
	serialRecord = selectRecord + ` WHERE serial = $1 AND issuer =
		CASE WHEN $2::bytea IS NULL THEN 0 ELSE (SELECT number FROM issuer WHERE name = $2) END`
)

// Create implements [scep.Depot].
func (db *DB) Create(ctx context.Context, rec *scep.Record) error {
	token := rand.Int64()
	args, err := encode(ctx, rec, token)
	if err != nil {
		return err
	}
	args[25] = int64(0) // whatever rec.Version is
	err = db.do(ctx, call{
		try: func(ctx context.Context, c *pgx.Conn) error {
			n, err := db.write(ctx, c, insertRecord, args, nil)
			if err == nil && n == 0 {
				return scep.ErrExists
			}
			return err
		},
		look: func(ctx context.Context, c *pgx.Conn) (fate, error) { return created(ctx, c, args[0], token) },
	})
	if err == nil {
		rec.Version = 1
	}
	return err
}

// created looks what has become of a record that was to be created with this token.
func created(ctx context.Context, c *pgx.Conn, id any, token int64) (fate, error) {
	_, origin, _, err := writer(ctx, c, id)
	switch {
	case errors.Is(err, scep.ErrNotFound):
		return absent, nil
	case err != nil:
		return absent, err
	case origin != token:
		return settled, scep.ErrExists // which keeps this one out, wherever it is
	}
	return settled, nil
}

// Update implements [scep.Depot].
func (db *DB) Update(ctx context.Context, rec *scep.Record) error {
	token := rand.Int64()
	args, err := encode(ctx, rec, token)
	if err != nil {
		return err
	}
	err = db.do(ctx, call{
		try: func(ctx context.Context, c *pgx.Conn) error {
			n, err := db.write(ctx, c, updateRecord, args, nil)
			if err == nil && n == 0 {
				if _, _, _, err = writer(ctx, c, args[0]); err == nil {
					return scep.ErrStale
				}
			}
			return err
		},
		look: func(ctx context.Context, c *pgx.Conn) (fate, error) {
			version, _, latest, err := writer(ctx, c, args[0])
			switch {
			case errors.Is(err, scep.ErrNotFound):
				return settled, err
			case err != nil:
				return absent, err
			case latest == token:
				return settled, nil
			case version == rec.Version:
				return absent, nil
			case version > rec.Version+1:
				return covered, nil
			}
			return settled, scep.ErrStale
		},
	})
	if err == nil {
		rec.Version++
	}
	return err
}

// write runs a statement that writes a record and, if first is not nil, just before it spends a
// challenge with those arguments, in the same transaction and round trip. A name that is left over
// from a write that was then refused does no harm.
func (db *DB) write(ctx context.Context, c *pgx.Conn, statement string, args, first []any) (int64, error) {
	statements := []string{statement, insertIssuer, spendChallenge}
	if first == nil {
		statements = statements[:2]
	}
	if err := prepare(ctx, c, statements...); err != nil {
		return 0, err
	}
	name, _ := args[26].([]byte)
	_, known := db.issuers.Load(string(name))
	for {
		if len(name) > 0 && !known {
			if _, err := c.Exec(ctx, insertIssuer, name); err != nil {
				return 0, unsentError{err} // may be done twice
			}
			db.issuers.Store(string(name), true)
		}
		n, err := run(ctx, c, statement, args, first)
		switch {
		case code(err) == codeUnique:
			return 0, scep.ErrExists
		case code(err) == codeNotNull && known: // the server was replaced by one that does not know it
			known = false
		default:
			return n, err
		}
	}
}

// run runs the statements of write, and returns how many records are written.
func run(ctx context.Context, c *pgx.Conn, statement string, args, first []any) (int64, error) {
	if first == nil {
		tag, err := c.Exec(ctx, statement, args...)
		return tag.RowsAffected(), err
	}
	var b pgx.Batch
	b.Queue(spendChallenge, first...)
	b.Queue(statement, args...)
	return send(ctx, c, &b)
}

// send runs a batch, in one transaction and one round trip, and returns how many rows its last
// statement has changed.
func send(ctx context.Context, c *pgx.Conn, b *pgx.Batch) (n int64, err error) {
	results := c.SendBatch(ctx, b)
	for range b.Len() {
		var tag pgconn.CommandTag
		if tag, err = results.Exec(); err != nil {
			break
		}
		n = tag.RowsAffected()
	}
	return n, errors.Join(err, results.Close())
}

func writer(ctx context.Context, c *pgx.Conn, id any) (version, origin, latest int64, err error) {
	err = c.QueryRow(ctx, whoWrote, id).Scan(&version, &origin, &latest)
	if errors.Is(err, pgx.ErrNoRows) {
		err = scep.ErrNotFound
	}
	return version, origin, latest, err
}

// Get implements [scep.Depot].
func (db *DB) Get(ctx context.Context, id scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, id); err != nil {
		return nil, err
	}
	return db.record(ctx, getRecord, digits(id))
}

// Latest implements [scep.Depot].
func (db *DB) Latest(ctx context.Context, transaction scep.ID) (*scep.Record, error) {
	if err := checkIDs(ctx, transaction); err != nil {
		return nil, err
	}
	return db.record(ctx, latestRecord, digits(transaction))
}

// GetSerial implements [scep.Depot].
func (db *DB) GetSerial(ctx context.Context, issuer []byte, serial *big.Int) (*scep.Record, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if serial == nil {
		return nil, scep.ErrNotFound
	}
	return db.record(ctx, serialRecord, number(serial), blob(issuer))
}

// record returns the one record that a query finds.
func (db *DB) record(ctx context.Context, query string, args ...any) (*scep.Record, error) {
	all, err := db.records(ctx, query, args...)
	switch {
	case err != nil:
		return nil, err
	case len(all) == 0:
		return nil, scep.ErrNotFound
	}
	return all[0], nil
}

// records returns the records that a query finds.
func (db *DB) records(ctx context.Context, query string, args ...any) (all []*scep.Record, err error) {
	err = db.do(ctx, call{try: func(ctx context.Context, c *pgx.Conn) error {
		rows, err := c.Query(ctx, query, args...)
		if err != nil {
			return err
		}
		all, err = pgx.CollectRows(rows, decode)
		return err
	}})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// encode returns the arguments of insertRecord and updateRecord.
func encode(ctx context.Context, rec *scep.Record, token int64) ([]any, error) {
	if err := checkIDs(ctx, rec.ID, rec.Transaction); err != nil {
		return nil, err
	}
	if err := checkIDs(ctx, rec.RenewedBy...); err != nil {
		return nil, err
	}
	var renews []byte
	if rec.Renews != "" {
		if err := checkIDs(ctx, rec.Renews); err != nil {
			return nil, err
		}
		renews = digits(rec.Renews)
	}
	subject, san := names.Of(rec)
	return []any{
		digits(rec.ID), token, digits(rec.Transaction), int16(rec.State), escape(rec.Profile),
		optional(rec.Created), optional(rec.Changed), number(rec.Serial), optional(rec.NotAfter), optional(rec.Revoked),
		int64(rec.RevocationReason), rec.Unconfirmed, int64(rec.Generation), renews, int64(rec.FailInfo),
		text(rec.Reason), text(rec.Via), text(rec.RemoteAddr), text(rec.TransactionID), text(subject),
		text(san), blob(allDigits(rec.RenewedBy)), blob(rec.CSR), blob(rec.Template), blob(rec.Certificate),
		rec.Version, blob(rec.Issuer), optional(rec.Unrevoked), text(rec.DecidedBy), text(rec.Remark),
	}, nil
}

// decode makes a record of a row of selectRecord.
func decode(row pgx.CollectableRow) (*scep.Record, error) { return decodeWith(row) }

// decodeWith makes a record of a row that begins as one of selectRecord, and sets more to the rest.
func decodeWith(row pgx.CollectableRow, more ...any) (*scep.Record, error) {
	var rec scep.Record
	var id, trans, serial, renews, renewedBy []byte
	var state int16
	var profile string
	var generation, reason64, failInfo int64
	var created, changed, notAfter, revoked, unrevoked *time.Time
	var reason, via, remoteAddr, transactionID, decidedBy, remark *string
	into := [...]any{&id, &trans, &rec.Version, &state, &profile, &created, &changed,
		&rec.Issuer, &serial, &notAfter, &revoked, &reason64, &rec.Unconfirmed, &generation, &renews,
		&failInfo, &reason, &via, &remoteAddr, &transactionID, &rec.CSR, &rec.Template, &renewedBy, &rec.Certificate,
		&unrevoked, &decidedBy, &remark}
	if err := row.Scan(append(into[:], more...)...); err != nil {
		return nil, err
	}
	rec.ID, rec.Transaction, rec.Renews, rec.RenewedBy = toID(id), toID(trans), toID(renews), toIDs(renewedBy)
	rec.State, rec.FailInfo, rec.RevocationReason, rec.Generation = scep.State(state), scep.FailInfo(failInfo), int(reason64), int(generation)
	rec.Profile, rec.Reason, rec.Via = unescape(profile), toText(reason), toText(via)
	rec.RemoteAddr, rec.TransactionID = toText(remoteAddr), toText(transactionID)
	rec.Serial = toNumber(serial)
	rec.DecidedBy, rec.Remark = toText(decidedBy), toText(remark)
	rec.Created, rec.Changed, rec.NotAfter = toTime(created), toTime(changed), toTime(notAfter)
	rec.Revoked, rec.Unrevoked = toTime(revoked), toTime(unrevoked)
	return &rec, nil
}
