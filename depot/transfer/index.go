package transfer

import (
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// entry is a line of index.txt:
//
//	status TAB expiry TAB [revocation date[,reason]] TAB serial number TAB file TAB name
type entry struct {
	revoked bool
	at      time.Time
	reason  scep.RevocationReason
	stated  bool // there is a reason
	serial  *big.Int
	file    string
	unclear error // what could not be read, and was made up for
}

func parseEntry(line string, now time.Time) (*entry, error) {
	fields := strings.SplitN(line, "\t", 5)
	if len(fields) < 5 {
		return nil, errors.New("is not as openssl ca writes it: six fields with tabs between")
	}
	e := &entry{}
	switch fields[0] {
	case "V", "E": // certificates know best when they expire
	case "R":
		e.revoked = true
	default:
		return nil, fmt.Errorf("there is no status %.20q", fields[0])
	}
	var ok bool
	hex := fields[3]
	if e.serial, ok = new(big.Int).SetString(hex, 16); !ok || len(hex) > 100 {
		return nil, fmt.Errorf("%.80q is not a serial number", hex)
	}
	// A common name, and with it the file's, may have tabs in it.
	end := "." + e.serial.String() + ".pem"
	if i := strings.Index(fields[4], end+"\t"); i >= 0 {
		e.file = fields[4][:i] + end
	} else {
		e.file, _, _ = strings.Cut(fields[4], "\t")
	}
	if e.file == "" || e.file == "unknown" { // what openssl ca writes, to a folder like this
		e.file = strings.ToUpper(hex) + ".pem"
	}
	if e.revoked {
		e.at, e.reason, ok = parseRevocation(fields[2])
		e.stated = !ok || strings.Contains(fields[2], ",")
		if !ok || e.at.After(now) {
			e.at = now
		}
		if !ok {
			e.unclear = fmt.Errorf("%.80q does not say when and why it was revoked; taken as now", fields[2])
		}
	}
	return e, nil
}

// parseRevocation reads a date, and a reason if there is one.
func parseRevocation(s string) (at time.Time, reason scep.RevocationReason, ok bool) {
	date, name, _ := strings.Cut(s, ",")
	name, _, _ = strings.Cut(name, ",")
	layout := "060102150405Z"
	if len(date) == len("20060102150405Z") {
		layout = "20060102150405Z"
	}
	at, err := time.Parse(layout, date)
	reason, known := reasonOf(name)
	return at, reason, err == nil && known
}

func reasonOf(name string) (scep.RevocationReason, bool) {
	switch name {
	case "":
		return scep.Unspecified, true
	case "holdInstruction":
		return scep.CertificateHold, true
	case "keyTime":
		return scep.KeyCompromise, true
	case "CAkeyTime":
		return scep.CACompromise, true
	}
	for r := scep.Unspecified; r <= scep.AACompromise; r++ {
		if r.Valid() && strings.EqualFold(name, r.String()) {
			return r, true
		}
	}
	return scep.Unspecified, false
}
