package depottest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// epoch is when everything happens.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 123456000, time.UTC)

// id returns an ID of its own for each name.
func id(format string, args ...any) scep.ID {
	sum := sha256.Sum256(fmt.Appendf(nil, format, args...))
	return scep.ID(hex.EncodeToString(sum[:]))
}

// record returns a record as the server would make it, that has nothing in common with one
// of another name.
func record(name string) *scep.Record {
	key := id("serial of %s", name)
	serial, _ := new(big.Int).SetString(string(key[:32]), 16)
	return &scep.Record{
		ID:            id("%s", name),
		Transaction:   id("transaction of %s", name),
		TransactionID: "transaction of " + name,
		State:         scep.Signing,
		CSR:           []byte("csr of " + name),
		Issuer:        []byte("issuer"),
		Serial:        serial,
		Template:      []byte("template of " + name),
		NotAfter:      epoch.AddDate(1, 0, 0),
		Created:       epoch,
		Changed:       epoch,
	}
}

// create stores rec and reads it back, so that nothing more is assumed of Create.
func create(ctx context.Context, d scep.Depot, rec *scep.Record) (*scep.Record, error) {
	if err := d.Create(ctx, rec); err != nil {
		return nil, fmt.Errorf("depot.Create: %w", err)
	}
	got, err := d.Get(ctx, rec.ID)
	if err != nil {
		return nil, fmt.Errorf("depot.Get after Create: %w", err)
	}
	if got == nil {
		return nil, errors.New("depot.Get after Create: no record and no error")
	}
	return got, nil
}

// createAll stores records.
func createAll(ctx context.Context, d scep.Depot, all ...*scep.Record) error {
	for _, rec := range all {
		if err := d.Create(ctx, rec); err != nil {
			return fmt.Errorf("depot.Create: %w", err)
		}
	}
	return nil
}

// want reports that err is another one.
func want(what string, err, target error) error {
	if !errors.Is(err, target) {
		return fmt.Errorf("%s: got error %v, want %v", what, err, target)
	}
	return nil
}

// found reports that an answer is not the record with this ID.
func found(what string, rec *scep.Record, err error, id scep.ID) error {
	switch {
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case rec == nil:
		return fmt.Errorf("%s: no record and no error", what)
	case rec.ID != id:
		return fmt.Errorf("%s: got record %.8s…, want %.8s…", what, rec.ID, id)
	}
	return nil
}

// together runs f n times at once and returns what each returned.
func together(n int, f func(i int) error) []error {
	errs := make([]error, n)
	start := make(chan struct{})
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() {
			<-start
			errs[i] = f(i)
		})
	}
	close(start)
	group.Wait()
	return errs
}

// fill sets every field of the struct that v points to, by reflection, so that a field
// added later is covered too. Different variants differ in every field but the bools.
func fill(v any, variant int) error {
	s := reflect.ValueOf(v).Elem()
	for i := range s.NumField() {
		name, field := s.Type().Field(i).Name, s.Field(i)
		switch field.Interface().(type) {
		case scep.ID:
			field.Set(reflect.ValueOf(id("%s %d", name, variant)))
		case []scep.ID:
			field.Set(reflect.ValueOf([]scep.ID{id("%s %d first", name, variant), id("%s %d second", name, variant)}))
		case scep.State:
			field.Set(reflect.ValueOf([]scep.State{scep.Issued, scep.Revoked, scep.Denied}[variant%3]))
		case scep.FailInfo:
			field.Set(reflect.ValueOf([]scep.FailInfo{scep.BadRequest, scep.BadCertID, scep.BadTime}[variant%3]))
		case string:
			field.SetString(fmt.Sprintf("%s %d: O'Brien; \"x\\y\" %%s ?1 $1 -- ü 例 \u2028", name, variant))
		case []byte:
			field.SetBytes(append([]byte{0, 0xff, '\'', 0}, fmt.Sprint(name, variant)...))
		case *big.Int:
			field.Set(reflect.ValueOf(big.NewInt(int64(1<<40 + variant))))
		case time.Time:
			field.Set(reflect.ValueOf(epoch.Add(time.Duration(1000*variant+i) * time.Microsecond)))
		case int, int64:
			field.SetInt(int64(100*variant + i + 1))
		case bool:
			field.SetBool(true)
		default:
			return fmt.Errorf("depottest cannot fill %s, a %s; it is older than the field", name, field.Type())
		}
	}
	return nil
}

// same reports in which field two structs differ. Times need only be equal to the
// microsecond, and no slice is as good as an empty one.
func same(got, want any) error {
	g, w := reflect.ValueOf(got).Elem(), reflect.ValueOf(want).Elem()
	for i := range w.NumField() {
		a, b := g.Field(i).Interface(), w.Field(i).Interface()
		equal := false
		switch b := b.(type) {
		case []byte:
			equal = bytes.Equal(a.([]byte), b)
		case []scep.ID:
			equal = slices.Equal(a.([]scep.ID), b)
		case *big.Int:
			a := a.(*big.Int)
			equal = a == nil && b == nil || a != nil && b != nil && a.Cmp(b) == 0
		case time.Time:
			equal = a.(time.Time).Truncate(time.Microsecond).Equal(b.Truncate(time.Microsecond))
		default:
			equal = a == b
		}
		if !equal {
			return fmt.Errorf("%s: got %v, want %v", w.Type().Field(i).Name, a, b)
		}
	}
	return nil
}

// hostile are no IDs.
var hostile = []scep.ID{
	"",
	scep.ID(bytes.Repeat([]byte("a"), 63)),
	scep.ID(bytes.Repeat([]byte("a"), 65)),
	scep.ID(bytes.Repeat([]byte("A"), 64)),
	scep.ID(bytes.Repeat([]byte("g"), 64)),
	scep.ID(bytes.Repeat([]byte("../"), 22)[:64]),
	"../../../../etc/passwd",
	id("x")[:63] + "\x00",
	id("x") + "\x00",
	id("x")[:62] + "é",
	"' OR ''='",
	"*",
}

// refuses reports which of the hostile IDs call takes.
func refuses(what string, call func(scep.ID) error) error {
	for _, bad := range hostile {
		switch err := call(bad); {
		case err == nil:
			return fmt.Errorf("%s takes %q for an ID", what, bad)
		case errors.Is(err, scep.ErrNotFound), errors.Is(err, scep.ErrExists), errors.Is(err, scep.ErrStale):
			return fmt.Errorf("%s looks for %q: %w", what, bad, err)
		}
	}
	return nil
}
