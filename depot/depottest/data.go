package depottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// What goes in comes out again: also after a crash, and also if somebody stops waiting.
var dataClauses = []clause{{
	name:     "CopiesIn",
	contract: "Records passed in are copies: the depot does not see the caller's later changes.",
	depot: func(ctx context.Context, d scep.Depot) error {
		spoil := func(rec *scep.Record) {
			for _, b := range [][]byte{rec.CSR, rec.Issuer, rec.Template, rec.Certificate} {
				for i := range b {
					b[i] ^= 0xff
				}
			}
			rec.Serial.Add(rec.Serial, big.NewInt(1))
			rec.Reason = "changed by the caller"
		}
		full := func() *scep.Record {
			rec := record("copied")
			rec.Certificate = []byte("certificate")
			return rec
		}
		rec := full()
		if err := createAll(ctx, d, rec); err != nil {
			return err
		}
		spoil(rec)
		got, err := d.Get(ctx, rec.ID)
		if err := found("Get", got, err, rec.ID); err != nil {
			return err
		}
		expected := full()
		expected.Version = got.Version
		if err := same(got, expected); err != nil {
			return fmt.Errorf("after Create: %w", err)
		}
		rec = got.Clone()
		if err := d.Update(ctx, rec); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		spoil(rec)
		got, err = d.Get(ctx, rec.ID)
		if err := found("Get", got, err, rec.ID); err != nil {
			return err
		}
		expected.Version = got.Version
		if err := same(got, expected); err != nil {
			return fmt.Errorf("after Update: %w", err)
		}
		return nil
	},
}, {
	name:     "CopiesOut",
	contract: "Records passed out are copies: the depot does not see the caller's later changes.",
	depot: func(ctx context.Context, d scep.Depot) error {
		rec := record("copied")
		rec.Certificate = []byte("certificate")
		expected := rec.Clone()
		if err := createAll(ctx, d, rec); err != nil {
			return err
		}
		for what, get := range map[string]func() (*scep.Record, error){
			"Get":       func() (*scep.Record, error) { return d.Get(ctx, expected.ID) },
			"Latest":    func() (*scep.Record, error) { return d.Latest(ctx, expected.Transaction) },
			"GetSerial": func() (*scep.Record, error) { return d.GetSerial(ctx, expected.Issuer, expected.Serial) },
		} {
			for range 2 {
				got, err := get()
				if err := found(what, got, err, expected.ID); err != nil {
					return err
				}
				expected.Version = got.Version
				if err := same(got, expected); err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				for _, b := range [][]byte{got.CSR, got.Issuer, got.Template, got.Certificate} {
					clear(b)
				}
				got.Serial.SetInt64(1)
				got.Reason = "changed by the caller"
			}
		}
		return nil
	},
}, {
	name:     "Fields",
	contract: "A record comes back as it was stored: every field of it, by whichever method.",
	depot: func(ctx context.Context, d scep.Depot) error {
		stored := new(scep.Record)
		if err := fill(stored, 1); err != nil {
			return err
		}
		look := func(when string) error {
			for what, get := range map[string]func() (*scep.Record, error){
				"Get":       func() (*scep.Record, error) { return d.Get(ctx, stored.ID) },
				"Latest":    func() (*scep.Record, error) { return d.Latest(ctx, stored.Transaction) },
				"GetSerial": func() (*scep.Record, error) { return d.GetSerial(ctx, stored.Issuer, stored.Serial) },
			} {
				got, err := get()
				if err := found(what, got, err, stored.ID); err != nil {
					return err
				}
				stored.Version = got.Version
				if err := same(got, stored); err != nil {
					return fmt.Errorf("%s %s: %w", what, when, err)
				}
			}
			return nil
		}
		stored.Version = 0
		if err := createAll(ctx, d, stored.Clone()); err != nil {
			return err
		}
		if err := look("after Create"); err != nil {
			return err
		}
		before := stored.ID
		version := stored.Version
		if err := fill(stored, 2); err != nil {
			return err
		}
		stored.ID, stored.Version = before, version
		if err := d.Update(ctx, stored.Clone()); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		return look("after Update")
	},
}, {
	name:     "EmptyFields",
	contract: "A field that is zero comes back as zero, also where it was not before.",
	depot: func(ctx context.Context, d scep.Depot) error {
		bare := func() *scep.Record {
			return &scep.Record{ID: id("bare"), Transaction: id("transaction")}
		}
		got, err := create(ctx, d, bare())
		if err != nil {
			return err
		}
		expected := bare()
		expected.Version = got.Version
		if err := same(got, expected); err != nil {
			return fmt.Errorf("after Create: %w", err)
		}
		full := new(scep.Record)
		if err := fill(full, 1); err != nil {
			return err
		}
		full.ID, full.Version = got.ID, got.Version
		if err := d.Update(ctx, full); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		if got, err = d.Get(ctx, expected.ID); err != nil {
			return err
		}
		expected.Version = got.Version
		if err := d.Update(ctx, expected.Clone()); err != nil {
			return fmt.Errorf("depot.Update: %w", err)
		}
		if got, err = d.Get(ctx, expected.ID); err != nil {
			return err
		}
		expected.Version = got.Version
		if err := same(got, expected); err != nil {
			return fmt.Errorf("after Update: %w", err)
		}
		return nil
	},
}, {
	name:     "Times",
	contract: "Depots keep microseconds at least, and no time zone.",
	depot: func(ctx context.Context, d scep.Depot) error {
		zone := time.FixedZone("somewhere", -7*3600)
		for i, t := range []time.Time{
			epoch,
			epoch.Add(time.Microsecond),
			epoch.In(zone),
			time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: no end
			time.Date(1969, 12, 31, 23, 59, 59, 999999000, time.UTC),
			time.Unix(0, 0),
		} {
			rec := record(fmt.Sprint(i))
			rec.Created, rec.NotAfter = t, t
			got, err := create(ctx, d, rec)
			if err != nil {
				return err
			}
			if !got.Created.Equal(t) || !got.NotAfter.Equal(t) {
				return fmt.Errorf("stored %v, got %v and %v", t, got.Created, got.NotAfter)
			}
		}
		return nil
	},
}, {
	name:     "IssuerBytes",
	contract: "GetSerial compares the issuer's name byte for byte.",
	depot: func(ctx context.Context, d scep.Depot) error {
		rec := record("one")
		rec.Issuer = []byte("Issuer\x00\xff")
		if err := createAll(ctx, d, rec); err != nil {
			return err
		}
		for _, issuer := range []string{"issuer\x00\xff", "Issuer", "Issuer\x00", "Issuer\x00\xff\x00", "Issuer\x00\xff ", ""} {
			_, err := d.GetSerial(ctx, []byte(issuer), rec.Serial)
			if err := want(fmt.Sprintf("GetSerial with issuer %q", issuer), err, scep.ErrNotFound); err != nil {
				return err
			}
		}
		got, err := d.GetSerial(ctx, rec.Issuer, rec.Serial)
		return found("GetSerial", got, err, rec.ID)
	},
}, {
	name:     "Serials",
	contract: "Serial numbers of up to 20 bytes, with the top bit or without, are kept as they are and told apart.",
	depot: func(ctx context.Context, d scep.Depot) error {
		long := new(big.Int).SetBytes(bytes.Repeat([]byte{0xff}, 20))
		var serials []*big.Int
		for _, n := range []uint{0, 7, 8, 63, 64, 127, 128, 159} {
			serials = append(serials, new(big.Int).Lsh(big.NewInt(1), n))
		}
		serials = append(serials, big.NewInt(255), big.NewInt(0xff00), long, new(big.Int).Sub(long, big.NewInt(1)))
		for i, serial := range serials {
			rec := record(fmt.Sprint(i))
			rec.Serial = serial
			got, err := create(ctx, d, rec)
			if err != nil {
				return fmt.Errorf("serial number %x: %w", serial, err)
			}
			if got.Serial == nil || got.Serial.Cmp(serial) != 0 {
				return fmt.Errorf("serial number %x came back as %x", serial, got.Serial)
			}
		}
		for i, serial := range serials {
			rec, err := d.GetSerial(ctx, []byte("issuer"), serial)
			if err := found(fmt.Sprintf("GetSerial of %x", serial), rec, err, id("%d", i)); err != nil {
				return err
			}
		}
		return nil
	},
}, {
	name:     "Reopen",
	contract: "When Create or Update returns nil, the record survives a crash: another depot over the same data has it.",
	reopen: func(ctx context.Context, d scep.Depot, reopen func() scep.Depot) error {
		const n = 24
		errs := together(n, func(i int) error {
			rec, err := create(ctx, d, record(fmt.Sprint(i)))
			if err != nil {
				return err
			}
			if i%2 == 0 {
				rec.State, rec.Certificate = scep.Issued, []byte("certificate")
				if err := d.Update(ctx, rec); err != nil {
					return fmt.Errorf("depot.Update: %w", err)
				}
			}
			return nil
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		again := reopen()
		for i := range n {
			expected := record(fmt.Sprint(i))
			if i%2 == 0 {
				expected.State, expected.Certificate = scep.Issued, []byte("certificate")
			}
			got, err := again.Get(ctx, expected.ID)
			if err := found("Get after reopening", got, err, expected.ID); err != nil {
				return err
			}
			expected.Version = got.Version
			if err := same(got, expected); err != nil {
				return fmt.Errorf("after reopening: %w", err)
			}
		}
		if err := want("Create after reopening", again.Create(ctx, record("0")), scep.ErrExists); err != nil {
			return err
		}
		return createAll(ctx, again, record("one more"))
	},
}, {
	name:     "Cancelled",
	contract: "When the context has ended, every method returns an error at once; a change has happened wholly or not at all, and nothing that exists is reported missing.",
	depot: func(ctx context.Context, d scep.Depot) error {
		there, err := create(ctx, d, record("there"))
		if err != nil {
			return err
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		changed := there.Clone()
		changed.Reason = "changed"
		for what, call := range map[string]func() error{
			"Create":    func() error { return d.Create(ended, record("new")) },
			"Update":    func() error { return d.Update(ended, changed) },
			"Get":       func() error { _, err := d.Get(ended, there.ID); return err },
			"Latest":    func() error { _, err := d.Latest(ended, there.Transaction); return err },
			"GetSerial": func() error { _, err := d.GetSerial(ended, there.Issuer, there.Serial); return err },
		} {
			begun := time.Now()
			err := call()
			if err == nil {
				return fmt.Errorf("%s does as if the context had not ended", what)
			}
			if errors.Is(err, scep.ErrNotFound) || errors.Is(err, scep.ErrExists) || errors.Is(err, scep.ErrStale) {
				return fmt.Errorf("%s under an ended context: %w", what, err)
			}
			if took := time.Since(begun); took > 10*time.Second {
				return fmt.Errorf("%s took %v to notice that the context had ended", what, took)
			}
		}

		// Ended at any moment on the way.
		errs := together(32, func(i int) error {
			ending, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
			defer cancel()
			rec := record(fmt.Sprint(i))
			told := d.Create(ending, rec.Clone())
			got, err := d.Get(ctx, rec.ID)
			if errors.Is(err, scep.ErrNotFound) {
				if told == nil {
					return errors.New("depot.Create returned nil and stored nothing")
				}
				// If it was still to happen, it must not collide with doing it again.
				if err := d.Create(ctx, rec.Clone()); err != nil && !errors.Is(err, scep.ErrExists) {
					return fmt.Errorf("depot.Create again: %w", err)
				}
				got, err = d.Get(ctx, rec.ID)
			}
			if err := found("Get", got, err, rec.ID); err != nil {
				return err
			}
			rec.Version = got.Version
			return same(got, rec)
		})
		return errors.Join(errs...)
	},
}}
