package sqlite

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// applicationID marks our files: "SCEP".
const applicationID = 0x53434550

// migrations[n] takes a file from version n to n+1 (PRAGMA user_version). What has been
// released here is never changed, only added to.
//
// Times are microseconds since 1970, UTC, NULL for none. IDs are 32 bytes. Empty text that
// is not searched for is NULL. The large columns come last, so that reading the others does
// not touch the pages they overflow to. Certificates have a table of their own: added to a
// row that has been written before they would make it grow and move, which costs a third
// more of everything.
var migrations = [...][]string{{
	`CREATE TABLE meta (
		one INTEGER PRIMARY KEY CHECK (one = 1),
		opened INTEGER NOT NULL -- when a process last opened the file
	) STRICT`,

	`INSERT INTO meta (one, opened) VALUES (1, 0)`,

	`CREATE TABLE issuer (
		number INTEGER PRIMARY KEY,
		name BLOB NOT NULL UNIQUE -- DER
	) STRICT`,

	`CREATE TABLE record (
		stored INTEGER PRIMARY KEY, -- in this order
		id BLOB NOT NULL,
		trans BLOB NOT NULL, -- the transaction
		version INTEGER NOT NULL,
		state INTEGER NOT NULL, -- 1 pending, 2 signing, 3 issued, 4 denied, 5 revoked
		profile TEXT NOT NULL,
		created INTEGER,
		changed INTEGER,
		issuer INTEGER REFERENCES issuer (number),
		serial BLOB, -- big-endian; a negative one has 00 in front
		not_after INTEGER,
		revoked INTEGER,
		revocation_reason INTEGER NOT NULL,
		unconfirmed INTEGER NOT NULL,
		generation INTEGER NOT NULL,
		renews BLOB,
		fail_info INTEGER NOT NULL,
		reason TEXT,
		via TEXT,
		remote_addr TEXT,
		transaction_id TEXT,
		subject TEXT, -- for people; what counts is in the certificate
		san TEXT, -- the same
		renewed_by BLOB, -- IDs, 32 bytes each
		csr BLOB,
		template BLOB
	) STRICT`,

	`CREATE UNIQUE INDEX record_id ON record (id)`,
	`CREATE UNIQUE INDEX record_serial ON record (serial, issuer) WHERE serial IS NOT NULL`,
	`CREATE INDEX record_trans ON record (trans, created)`,
	// Most are issued; the index has the few others.
	`CREATE INDEX record_state ON record (state, id) WHERE state <> 3`,

	`CREATE TABLE certificate (
		record INTEGER PRIMARY KEY REFERENCES record (stored) ON DELETE CASCADE,
		der BLOB NOT NULL
	) STRICT`,

	`CREATE VIEW certificates AS SELECT
		lower(hex(r.id)) AS id,
		CASE r.state WHEN 1 THEN 'pending' WHEN 2 THEN 'signing' WHEN 3 THEN 'issued' WHEN 4 THEN 'denied' WHEN 5 THEN 'revoked' END AS state,
		r.profile,
		r.subject,
		r.san,
		lower(hex(r.serial)) AS serial,
		datetime(r.created / 1000000, 'unixepoch') AS created,
		datetime(r.not_after / 1000000, 'unixepoch') AS not_after,
		datetime(r.revoked / 1000000, 'unixepoch') AS revoked,
		r.transaction_id,
		r.remote_addr,
		r.csr,
		c.der AS certificate
	FROM record AS r LEFT JOIN certificate AS c ON c.record = r.stored`,

	`CREATE TABLE challenge (
		hash BLOB PRIMARY KEY,
		profile TEXT NOT NULL,
		subject TEXT,
		san TEXT,
		created INTEGER,
		expires INTEGER NOT NULL,
		spent INTEGER,
		spent_by BLOB,
		forget INTEGER NOT NULL -- when the row may be deleted
	) STRICT, WITHOUT ROWID`,

	`CREATE INDEX challenge_unspent ON challenge (profile, expires) WHERE spent_by IS NULL`,
	`CREATE INDEX challenge_forget ON challenge (forget)`,
}, {
	`ALTER TABLE record ADD COLUMN unrevoked INTEGER`,
	`ALTER TABLE record ADD COLUMN decided_by TEXT`,
	`ALTER TABLE record ADD COLUMN remark TEXT`,

	`DROP VIEW certificates`,
	`CREATE VIEW certificates AS SELECT
		lower(hex(r.id)) AS id,
		CASE r.state WHEN 1 THEN 'pending' WHEN 2 THEN 'signing' WHEN 3 THEN 'issued' WHEN 4 THEN 'denied' WHEN 5 THEN 'revoked' END AS state,
		r.profile,
		r.subject,
		r.san,
		lower(hex(r.serial)) AS serial,
		datetime(r.created / 1000000, 'unixepoch') AS created,
		datetime(r.not_after / 1000000, 'unixepoch') AS not_after,
		datetime(r.revoked / 1000000, 'unixepoch') AS revoked,
		CASE r.state WHEN 5 THEN r.revocation_reason END AS revocation_reason, -- RFC 5280, 5.3.1
		r.decided_by,
		r.remark,
		r.transaction_id,
		r.remote_addr,
		r.csr,
		c.der AS certificate
	FROM record AS r LEFT JOIN certificate AS c ON c.record = r.stored`,

	// These have all that a CRL needs, so that listing reads no records.
	`CREATE INDEX record_revoked ON record (issuer, serial, not_after, revoked, revocation_reason)
		WHERE state = 5 AND serial IS NOT NULL`,
	`CREATE INDEX record_revoked_since ON record (issuer, changed, serial, not_after, revoked, revocation_reason)
		WHERE state = 5 AND serial IS NOT NULL`,
	`CREATE INDEX record_unrevoked_since ON record (issuer, unrevoked, serial, not_after, state)
		WHERE state = 3 AND unrevoked IS NOT NULL AND serial IS NOT NULL`,
}, {
	// For Prune. Most records have no place in the others.
	`CREATE INDEX record_not_after ON record (not_after) WHERE not_after IS NOT NULL`,
	`CREATE INDEX record_denied ON record (changed) WHERE state = 4`,
	`CREATE INDEX record_pending ON record (changed) WHERE state = 1`,
	`CREATE INDEX record_generation ON record (trans, generation) WHERE generation > 0`,
	`CREATE INDEX record_renewing ON record (renews) WHERE renews IS NOT NULL AND (state < 3 OR unconfirmed <> 0)`,
}}

const (
	checkAlways = 64 << 20 // files up to here are checked whenever they are opened
	checkUpTo   = 1 << 30  // and up to here, if they were not closed properly
)

// prepareFile checks the file, brings it up to date, writes to it, and prepares c to be the
// connection that writes.
func prepareFile(path string, c *conn, leftBehind bool) (*writer, error) {
	fresh, err := recognise(c)
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !fresh && (info.Size() <= checkAlways || leftBehind && info.Size() <= checkUpTo) {
		if err := check(c); err != nil {
			return nil, err
		}
	}
	mode, err := c.value("PRAGMA journal_mode = WAL")
	if err != nil {
		return nil, err
	}
	if mode != "wal" {
		return nil, fmt.Errorf("file system cannot do write-ahead logging (journal mode stays %v); use a local disk", mode)
	}
	if err := migrate(c); err != nil {
		return nil, err
	}
	return newWriter(c)
}

// recognise reports whether the file is empty, or why it is not ours.
func recognise(c *conn) (fresh bool, err error) {
	things, err := c.value("SELECT count(*) FROM sqlite_schema")
	if err != nil {
		return false, err
	}
	if things == int64(0) {
		return true, nil
	}
	app, err := c.value("PRAGMA application_id")
	if err != nil {
		return false, err
	}
	if app != int64(applicationID) {
		return false, errors.New("belongs to another application; name another file")
	}
	return false, nil
}

// check looks for damage.
func check(c *conn) error {
	found, err := c.value("PRAGMA quick_check(1)")
	if err != nil {
		return err
	}
	if found != "ok" {
		return fmt.Errorf("%s: %v", damaged, found)
	}
	return nil
}

// migrate brings the schema up to date and writes something, to see that it can be done.
func migrate(c *conn) (err error) {
	if err := c.once("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			c.once("ROLLBACK") // fails if SQLite has done it already
		}
	}()
	version, err := c.value("PRAGMA user_version")
	if err != nil {
		return err
	}
	from, _ := version.(int64)
	if from < 0 || from > int64(len(migrations)) {
		return fmt.Errorf("has schema version %d, and this program knows %d; use a newer version of it", from, len(migrations))
	}
	for _, steps := range migrations[from:] {
		for _, step := range steps {
			if err := c.once(step); err != nil {
				return fmt.Errorf("%s: %w", step, err)
			}
		}
	}
	if from < int64(len(migrations)) {
		for _, step := range []string{
			fmt.Sprintf("PRAGMA application_id = %d", applicationID),
			fmt.Sprintf("PRAGMA user_version = %d", len(migrations)),
		} {
			if err := c.once(step); err != nil {
				return err
			}
		}
	}
	if err := c.once("UPDATE meta SET opened = ?", time.Now().UnixMicro()); err != nil {
		return err
	}
	return c.once("COMMIT")
}
