package transfer

import (
	"encoding/json"
	"fmt"
	"math/big"
	"reflect"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// full returns a record of which every field is set, by reflection, so that a field that is
// added later is not forgotten.
func full(t *testing.T) *scep.Record {
	t.Helper()
	rec := new(scep.Record)
	v := reflect.ValueOf(rec).Elem()
	for i := range v.NumField() {
		f := v.Field(i)
		id := scep.ID(fmt.Sprintf("%064x", i+1))
		switch f.Interface().(type) {
		case scep.ID:
			f.Set(reflect.ValueOf(id))
		case []scep.ID:
			f.Set(reflect.ValueOf([]scep.ID{id, "a" + id[1:]}))
		case scep.State:
			f.Set(reflect.ValueOf(scep.Revoked))
		case string:
			f.SetString(fmt.Sprintf("%d: <\xff\x00\u2028 \"ü\\ \xed\xa0\x80", i))
		case []byte:
			f.SetBytes([]byte{0, 0xff, byte(i)})
		case *big.Int:
			f.Set(reflect.ValueOf(new(big.Int).Lsh(big.NewInt(-7), 160)))
		case time.Time:
			f.Set(reflect.ValueOf(time.Date(1960+30*i, 1, 2, 3, 4, 5, 123456789, time.UTC)))
		default:
			switch {
			case f.CanInt():
				f.SetInt(int64(i + 1))
			case f.CanUint():
				f.SetUint(uint64(i + 1))
			case f.Kind() == reflect.Bool:
				f.SetBool(true)
			default:
				t.Fatalf("field %s", v.Type().Field(i).Name)
			}
		}
	}
	return rec
}

func TestLine(t *testing.T) {
	rec := full(t)
	l, err := toLine(rec)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := fromLine(data)
	if err != nil {
		t.Fatalf("%v\n%s", err, data)
	}
	got.Version = rec.Version // the depot's own
	v, w := reflect.ValueOf(got).Elem(), reflect.ValueOf(rec).Elem()
	for i := range v.NumField() {
		if name := v.Type().Field(i).Name; !reflect.DeepEqual(v.Field(i).Interface(), w.Field(i).Interface()) {
			t.Errorf("%s: %v became %v\n%s", name, w.Field(i), v.Field(i), data)
		}
	}
}

// Every field that differs is named.
func TestDifference(t *testing.T) {
	whole := full(t)
	if name, err := difference(whole, full(t)); name != "" || err != nil {
		t.Errorf("of the same: %q, %v", name, err)
	}
	v := reflect.ValueOf(whole).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i).Name
		other := full(t)
		reflect.ValueOf(other).Elem().Field(i).SetZero()
		name, err := difference(whole, other)
		if err != nil || (name == "") != (field == "Version") {
			t.Errorf("of another %s: %q, %v", field, name, err)
		}
	}
	later := full(t)
	later.Created = later.Created.Add(-789).In(time.FixedZone("", 3600))
	if name, err := difference(whole, later); name != "" || err != nil {
		t.Errorf("below a microsecond: %q, %v", name, err)
	}
}
