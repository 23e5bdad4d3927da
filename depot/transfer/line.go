package transfer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/scepkit/scepkit/scep"
)

// line is a record as it is written. What is zero is left out.
type line struct {
	ID            scep.ID   `json:"id"`
	Transaction   scep.ID   `json:"transaction"`
	Profile       text      `json:"profile,omitempty"`
	TransactionID text      `json:"transaction_id,omitempty"`
	Generation    int       `json:"generation,omitempty"`
	RemoteAddr    text      `json:"remote_addr,omitempty"`
	Via           text      `json:"via,omitempty"`
	Renews        scep.ID   `json:"renews,omitempty"`
	RenewedBy     []scep.ID `json:"renewed_by,omitempty"`

	State       string    `json:"state,omitempty"`
	CSR         []byte    `json:"csr,omitempty"`
	Issuer      []byte    `json:"issuer,omitempty"`
	Serial      string    `json:"serial,omitempty"` // hexadecimal
	Template    []byte    `json:"template,omitempty"`
	Certificate []byte    `json:"certificate,omitempty"`
	NotAfter    time.Time `json:"not_after,omitzero"`

	FailInfo scep.FailInfo `json:"fail_info,omitempty"`
	Reason   text          `json:"reason,omitempty"`

	Unconfirmed bool `json:"unconfirmed,omitempty"`

	Revoked          time.Time `json:"revoked,omitzero"`
	RevocationReason int       `json:"revocation_reason,omitempty"`
	Unrevoked        time.Time `json:"unrevoked,omitzero"`

	DecidedBy text `json:"decided_by,omitempty"`
	Remark    text `json:"remark,omitempty"`

	Created time.Time `json:"created,omitzero"`
	Changed time.Time `json:"changed,omitzero"`
}

// text is a string, which need not be UTF-8.
type text string

// bare is text that is not UTF-8.
type bare struct {
	Base64 []byte `json:"base64"`
}

func (t text) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(t)) {
		return json.Marshal(string(t))
	}
	return json.Marshal(bare{[]byte(t)})
}

func (t *text) UnmarshalJSON(data []byte) error {
	if !bytes.HasPrefix(data, []byte("{")) {
		return json.Unmarshal(data, (*string)(t))
	}
	var b bare
	err := json.Unmarshal(data, &b)
	*t = text(b.Base64)
	return err
}

func toLine(rec *scep.Record) (*line, error) {
	l := &line{
		ID: rec.ID, Transaction: rec.Transaction, Profile: text(rec.Profile), TransactionID: text(rec.TransactionID),
		Generation: rec.Generation, RemoteAddr: text(rec.RemoteAddr), Via: text(rec.Via), Renews: rec.Renews, RenewedBy: rec.RenewedBy,
		CSR: rec.CSR, Issuer: rec.Issuer, Template: rec.Template, Certificate: rec.Certificate, NotAfter: rec.NotAfter.UTC(),
		FailInfo: rec.FailInfo, Reason: text(rec.Reason), Unconfirmed: rec.Unconfirmed,
		Revoked: rec.Revoked.UTC(), RevocationReason: rec.RevocationReason, Unrevoked: rec.Unrevoked.UTC(),
		DecidedBy: text(rec.DecidedBy), Remark: text(rec.Remark), Created: rec.Created.UTC(), Changed: rec.Changed.UTC(),
	}
	if rec.Serial != nil {
		l.Serial = rec.Serial.Text(16)
	}
	if rec.State != 0 {
		if l.State = rec.State.String(); stateOf(l.State) != rec.State {
			return nil, fmt.Errorf("state is %d", rec.State)
		}
	}
	return l, nil
}

// fromLine returns the record of a line, or nil and the number in the last line.
func fromLine(data []byte) (rec *scep.Record, end int, err error) {
	var l struct {
		line
		End *int `json:"end"`
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields() // would be lost
	if err := dec.Decode(&l); err != nil {
		return nil, 0, err
	}
	if dec.More() {
		return nil, 0, errors.New("more than one object")
	}
	if l.End != nil {
		return nil, *l.End, nil
	}
	ids := append([]scep.ID{l.ID, l.Transaction}, l.RenewedBy...)
	if l.Renews != "" {
		ids = append(ids, l.Renews)
	}
	for _, id := range ids {
		if !id.Valid() {
			return nil, 0, fmt.Errorf("%.80q is not an ID", string(id))
		}
	}
	rec = &scep.Record{
		ID: l.ID, Transaction: l.Transaction, Profile: string(l.Profile), TransactionID: string(l.TransactionID),
		Generation: l.Generation, RemoteAddr: string(l.RemoteAddr), Via: string(l.Via), Renews: l.Renews, RenewedBy: l.RenewedBy,
		State: stateOf(l.State), CSR: l.CSR, Issuer: l.Issuer, Template: l.Template, Certificate: l.Certificate, NotAfter: l.NotAfter,
		FailInfo: l.FailInfo, Reason: string(l.Reason), Unconfirmed: l.Unconfirmed,
		Revoked: l.Revoked, RevocationReason: l.RevocationReason, Unrevoked: l.Unrevoked,
		DecidedBy: string(l.DecidedBy), Remark: string(l.Remark), Created: l.Created, Changed: l.Changed,
	}
	if l.State != "" && rec.State == 0 {
		return nil, 0, fmt.Errorf("record %s: there is no state %.20q", l.ID, l.State)
	}
	if l.Serial != "" {
		var ok bool
		if rec.Serial, ok = new(big.Int).SetString(l.Serial, 16); !ok {
			return nil, 0, fmt.Errorf("record %s: %.80q is not a serial number", l.ID, l.Serial)
		}
	}
	return rec, 0, nil
}

// stateOf returns the state of this name, or 0.
func stateOf(name string) scep.State {
	for s := scep.Pending; s <= scep.Revoked; s++ {
		if s.String() == name {
			return s
		}
	}
	return 0
}

// difference names a field in which two records differ, by what depots keep; "" if there is none.
func difference(a, b *scep.Record) (string, error) {
	x, err := keptLine(a)
	if err != nil {
		return "", err
	}
	y, err := keptLine(b)
	if err != nil {
		return "", err
	}
	v, w := reflect.ValueOf(x), reflect.ValueOf(y)
	for i := range v.NumField() {
		f, g := v.Field(i), w.Field(i)
		switch f.Kind() {
		case reflect.Slice:
			if f.Len() == 0 && g.Len() == 0 {
				continue
			}
		}
		if !reflect.DeepEqual(f.Interface(), g.Interface()) {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			return name, nil
		}
	}
	return "", nil
}

// keptLine is toLine with times as every depot keeps them.
func keptLine(rec *scep.Record) (line, error) {
	l, err := toLine(rec)
	if err != nil {
		return line{}, err
	}
	for _, t := range []*time.Time{&l.NotAfter, &l.Revoked, &l.Unrevoked, &l.Created, &l.Changed} {
		*t = t.Truncate(time.Microsecond)
	}
	return *l, nil
}
