"""The words: English, German and what each goes with, as plain text tables.

A star marks a rare lexeme: training text contains it one to three times.  Order is frequency
order: within a kind, the first word is drawn most often.

Nouns       `english[/plural] gender Singular Plural [w]`, by kind; plural `-` is a mass noun, `w`
            marks the weak declension (den Jungen).
Verbs       `english [past participle] | german [er-form[/du-form]] [participle] [flags] | frames`.
            English `!` doubles the last consonant (stop, stopped), `+up` is a particle (picks him
            up), `&for` a fixed preposition (looks for him), `ing=` an irregular form.
            German `an_rufen` is separable; `s` takes sein in the perfect, `r` is reflexive,
            `p=wusste` prefers the preterite, `st` is a state (no English progressive).
            Frames are `name SUBJECT_KINDS [> OBJECT_KINDS]`.
Adjectives  `english german kinds [> english german comparative]`; `teuer=teur` gives the stem
            before endings.
Synonyms    `known held-out [irregular forms]`: English that training text never contains.
"""

import re
from dataclasses import dataclass, field, replace
from typing import Literal

Gender = Literal["m", "f", "n"]


@dataclass(frozen=True, eq=False)
class Noun:
    """`name` stays the known English where `en` is a held-out synonym."""

    name: str
    en: str
    en_plural: str
    de: str
    de_plural: str
    gender: Gender
    kind: str
    weak: bool
    rare: bool

    @property
    def mass(self) -> bool:
        return self.de_plural == "-"


@dataclass(frozen=True)
class Frame:
    """One way to use a verb; `preposition` is (english, german, case) in frame `prep` only."""

    name: str
    subjects: tuple[str, ...]
    objects: tuple[str, ...]
    preposition: tuple[str, str, str] | None


@dataclass(frozen=True, eq=False)
class Verb:
    en: str
    en_past: str
    en_participle: str
    en_ing: str
    particle: str
    fixed_preposition: bool
    de: str
    prefix: str
    de_third: str
    de_second: str
    de_participle: str
    preterite: str
    sein: bool
    reflexive: bool
    stative: bool
    rare: bool
    frames: tuple[Frame, ...] = field(default=())


@dataclass(frozen=True, eq=False)
class Adjective:
    en: str
    de: str
    stem: str
    kinds: tuple[str, ...]
    comparative: tuple[str, str] | None
    rare: bool
    predicative_only: bool = False


Lexeme = Noun | Verb | Adjective


@dataclass(frozen=True)
class Synonym:
    """`held_out` is `known` with other English; the German is shared."""

    known: Lexeme
    held_out: Lexeme


GROUPS = {
    "PERSON": "family person job",
    "ANIMATE": "family person job animal baby",
    "FOOD": "food foodmass",
    "OBJECT": "thing furniture clothes vehicle device text",
    "SOLID": "thing furniture clothes vehicle device",
    "HOUSE": "building room",
    "PLACE": "building room area onarea",
    "SIGHT": "family person job animal building vehicle nature thing",
    # A few nouns by name, where a whole kind would read oddly.
    "OPENABLE": "shop closet suitcase box",
    "COOKABLE": "soup fish egg potato sausage meat rice",
    "BAKEABLE": "cake pizza bread cookie",
    "BREAKABLE": "cup glass bottle plate vase mirror doll",
    "LEARNABLE": "language word poem rule song",
    "SOLVABLE": "problem task puzzle",
    "ANSWERABLE": "question letter message",
    "THROWABLE": "ball stone coin",
    "COLLECTABLE": "picture coin stone card photo doll clock book leaf map flag",
    "CUTTABLE": "apple cake bread onion meat cheese pizza tomato potato sausage orange",
    "WINNABLE": "game prize",
    "PLANTABLE": "tree flower rose plant lily cactus",
    "TELLABLE": "story secret joke",
    "STANDING": "cup bottle glass plate vase lamp basket suitcase chair candle box bucket",
    "FLAT": "key knife spoon fork card blanket map ring coin photo pencil",
    "TALL": "tower mountain hill",
    "DEEP": "river lake sea valley pond",
    "BROAD": "street river bridge valley door window",
    "BLADE": "knife pencil sword needle",
    "HOLDER": "cup bottle glass plate box basket suitcase bag bucket shelf closet vase",
    "CORRECTABLE": "answer word decision result number sentence",
    "HARD": "question task exam problem novel language decision puzzle course",
    "STOUT": "suitcase box bag table closet stone desk machine piano basket",
    "COSY": "bed sofa chair coat sweater shoe jacket",
    "FRUIT": "apple banana tomato orange pear cherry peach grape",
    "PERILOUS": "snake bear lion tiger wolf street river mountain bridge thief enemy forest dog",
}

NOUNS = {
    "family": """
        mother f Mutter Mütter; father m Vater Väter; brother m Bruder Brüder;
        sister f Schwester Schwestern; son m Sohn Söhne; daughter f Tochter Töchter;
        uncle m Onkel Onkel; aunt f Tante Tanten; grandmother f Großmutter Großmütter;
        grandfather m Großvater Großväter; *nephew m Neffe Neffen w;
        *niece f Nichte Nichten""",
    "baby": "baby n Baby Babys",
    "person": """
        man/men m Mann Männer; woman/women f Frau Frauen; child/children n Kind Kinder;
        boy m Junge Jungen w; girl n Mädchen Mädchen; friend m Freund Freunde;
        neighbor m Nachbar Nachbarn w; guest m Gast Gäste; student m Student Studenten w;
        colleague m Kollege Kollegen w; pupil m Schüler Schüler; king m König Könige;
        tourist m Tourist Touristen w; queen f Königin Königinnen; thief/thieves m Dieb Diebe;
        enemy m Feind Feinde; prince m Prinz Prinzen w; princess f Prinzessin Prinzessinnen;
        hero/heroes m Held Helden w; patient m Patient Patienten w; *giant m Riese Riesen w;
        *witch f Hexe Hexen; *twin m Zwilling Zwillinge; *heir m Erbe Erben w;
        *widow f Witwe Witwen; *pirate m Pirat Piraten w; *dwarf m Zwerg Zwerge;
        *emperor m Kaiser Kaiser""",
    "job": """
        teacher m Lehrer Lehrer; doctor m Arzt Ärzte; policeman/policemen m Polizist Polizisten w;
        nurse f Krankenschwester Krankenschwestern; boss m Chef Chefs; lawyer m Anwalt Anwälte;
        farmer m Bauer Bauern w; author m Autor Autoren; driver m Fahrer Fahrer;
        waiter m Kellner Kellner; baker m Bäcker Bäcker; painter m Maler Maler;
        singer m Sänger Sänger; soldier m Soldat Soldaten w; engineer m Ingenieur Ingenieure;
        mechanic m Mechaniker Mechaniker; judge m Richter Richter; pilot m Pilot Piloten w;
        journalist m Journalist Journalisten w; actor m Schauspieler Schauspieler;
        musician m Musiker Musiker; professor m Professor Professoren; dentist m Zahnarzt Zahnärzte;
        scientist m Wissenschaftler Wissenschaftler; president m Präsident Präsidenten w;
        mayor m Bürgermeister Bürgermeister; hunter m Jäger Jäger; priest m Priester Priester;
        sailor m Matrose Matrosen w; coach m Trainer Trainer; knight m Ritter Ritter;
        *butcher m Metzger Metzger; *gardener m Gärtner Gärtner; *tailor m Schneider Schneider;
        *carpenter m Tischler Tischler; *poet m Dichter Dichter; *monk m Mönch Mönche;
        *nun f Nonne Nonnen; *athlete m Sportler Sportler; *dancer m Tänzer Tänzer;
        *spy m Spion Spione; *referee m Schiedsrichter Schiedsrichter""",
    "animal": """
        dog m Hund Hunde; cat f Katze Katzen; horse n Pferd Pferde; bird m Vogel Vögel;
        cow f Kuh Kühe; pig n Schwein Schweine; mouse/mice f Maus Mäuse;
        rabbit n Kaninchen Kaninchen; sheep/sheep n Schaf Schafe; bear m Bär Bären w;
        lion m Löwe Löwen w; elephant m Elefant Elefanten w; monkey m Affe Affen w;
        wolf/wolves m Wolf Wölfe; fox m Fuchs Füchse; duck f Ente Enten; tiger m Tiger Tiger;
        snake f Schlange Schlangen; *goat f Ziege Ziegen; *donkey m Esel Esel;
        *frog m Frosch Frösche; *spider f Spinne Spinnen; *eagle m Adler Adler; *owl f Eule Eulen;
        *camel n Kamel Kamele; *turtle f Schildkröte Schildkröten; *crow f Krähe Krähen;
        *swan m Schwan Schwäne; *squirrel n Eichhörnchen Eichhörnchen; *bee f Biene Bienen;
        *butterfly m Schmetterling Schmetterlinge; *dragon m Drache Drachen w""",
    "food": """
        apple m Apfel Äpfel; cake m Kuchen Kuchen; egg n Ei Eier; fish/fish m Fisch Fische;
        soup f Suppe Suppen; potato/potatoes f Kartoffel Kartoffeln; salad m Salat Salate;
        tomato/tomatoes f Tomate Tomaten; orange f Orange Orangen; pizza f Pizza Pizzas;
        sausage f Wurst Würste; banana f Banane Bananen; cookie m Keks Kekse;
        onion f Zwiebel Zwiebeln; *pear f Birne Birnen; *cherry f Kirsche Kirschen;
        *lemon f Zitrone Zitronen; *peach m Pfirsich Pfirsiche; *grape f Traube Trauben;
        *mushroom m Pilz Pilze""",
    "foodmass": """
        bread n Brot -; cheese m Käse -; meat n Fleisch -; rice m Reis -; chocolate f Schokolade -;
        fruit n Obst -; butter f Butter -; *honey m Honig -; *garlic m Knoblauch -;
        *ham m Schinken -""",
    "drink": """
        water n Wasser -; coffee m Kaffee -; tea m Tee -; milk f Milch -; wine m Wein -;
        beer n Bier -; juice m Saft -; *champagne m Champagner -""",
    "clothes": """
        shirt n Hemd Hemden; coat m Mantel Mäntel; dress n Kleid Kleider; jacket f Jacke Jacken;
        hat m Hut Hüte; shoe m Schuh Schuhe; sweater m Pullover Pullover; skirt m Rock Röcke;
        suit m Anzug Anzüge; cap f Mütze Mützen; scarf/scarves m Schal Schals;
        boot m Stiefel Stiefel; uniform f Uniform Uniformen; *glove m Handschuh Handschuhe;
        *belt m Gürtel Gürtel; *sock f Socke Socken; *crown f Krone Kronen;
        *mask f Maske Masken""",
    "vehicle": """
        car n Auto Autos; train m Zug Züge; bus m Bus Busse; bike n Fahrrad Fahrräder;
        plane n Flugzeug Flugzeuge; taxi n Taxi Taxis; ship n Schiff Schiffe; boat n Boot Boote;
        truck m Lastwagen Lastwagen; motorcycle n Motorrad Motorräder;
        tram f Straßenbahn Straßenbahnen; *helicopter m Hubschrauber Hubschrauber;
        *tractor m Traktor Traktoren; *ambulance m Krankenwagen Krankenwagen;
        *canoe n Kanu Kanus; *carriage f Kutsche Kutschen""",
    "furniture": """
        table m Tisch Tische; chair m Stuhl Stühle; bed n Bett Betten; sofa n Sofa Sofas;
        closet m Schrank Schränke; shelf/shelves n Regal Regale; desk m Schreibtisch Schreibtische;
        carpet m Teppich Teppiche; *armchair m Sessel Sessel; *stool m Hocker Hocker""",
    "thing": """
        key m Schlüssel Schlüssel; bag f Tasche Taschen; picture n Bild Bilder;
        cup f Tasse Tassen; bottle f Flasche Flaschen; glass n Glas Gläser; ball m Ball Bälle;
        present n Geschenk Geschenke; plate m Teller Teller; photo n Foto Fotos;
        knife/knives n Messer Messer; suitcase m Koffer Koffer; lamp f Lampe Lampen;
        umbrella m Regenschirm Regenschirme; clock f Uhr Uhren; box f Kiste Kisten;
        stone m Stein Steine; pencil m Bleistift Bleistifte; spoon m Löffel Löffel;
        fork f Gabel Gabeln; basket m Korb Körbe; doll f Puppe Puppen; card f Karte Karten;
        candle f Kerze Kerzen; guitar f Gitarre Gitarren; mirror m Spiegel Spiegel;
        camera f Kamera Kameras; coin f Münze Münzen; vase f Vase Vasen; map f Landkarte Landkarten;
        blanket f Decke Decken; ring m Ring Ringe; piano n Klavier Klaviere; rope n Seil Seile;
        bucket m Eimer Eimer; flag f Fahne Fahnen; *violin f Geige Geigen;
        *drum f Trommel Trommeln; *hammer m Hammer Hämmer; *needle f Nadel Nadeln;
        *brush f Bürste Bürsten; *flute f Flöte Flöten; *ladder f Leiter Leitern;
        *pillow n Kissen Kissen; *sword n Schwert Schwerter; *arrow m Pfeil Pfeile;
        *wallet m Geldbeutel Geldbeutel; *barrel n Fass Fässer; *chain f Kette Ketten;
        *jar m Krug Krüge""",
    "text": """
        book n Buch Bücher; letter m Brief Briefe; newspaper f Zeitung Zeitungen;
        story f Geschichte Geschichten; report m Bericht Berichte; message f Nachricht Nachrichten;
        text m Text Texte; magazine f Zeitschrift Zeitschriften; novel m Roman Romane;
        poem n Gedicht Gedichte; article m Artikel Artikel; sentence m Satz Sätze;
        *diary n Tagebuch Tagebücher; *contract m Vertrag Verträge; *recipe n Rezept Rezepte""",
    "song": "song n Lied Lieder; *hymn f Hymne Hymnen",
    "device": """
        computer m Computer Computer; phone n Telefon Telefone; television m Fernseher Fernseher;
        radio n Radio Radios; machine f Maschine Maschinen; engine m Motor Motoren;
        elevator m Aufzug Aufzüge; *printer m Drucker Drucker""",
    "building": """
        house n Haus Häuser; school f Schule Schulen; shop m Laden Läden; hotel n Hotel Hotels;
        restaurant n Restaurant Restaurants; church f Kirche Kirchen; office n Büro Büros;
        hospital n Krankenhaus Krankenhäuser; museum n Museum Museen; theater n Theater Theater;
        cinema n Kino Kinos; library f Bibliothek Bibliotheken; bank f Bank Banken;
        university f Universität Universitäten; factory f Fabrik Fabriken;
        castle n Schloss Schlösser; prison n Gefängnis Gefängnisse; pub f Kneipe Kneipen;
        supermarket m Supermarkt Supermärkte; tower m Turm Türme; *stadium n Stadion Stadien;
        *bakery f Bäckerei Bäckereien; *barn f Scheune Scheunen; *hut f Hütte Hütten;
        *palace m Palast Paläste; *temple m Tempel Tempel; *monastery n Kloster Klöster;
        *pharmacy f Apotheke Apotheken; *stable m Stall Ställe; *tent n Zelt Zelte""",
    "room": """
        room n Zimmer Zimmer; kitchen f Küche Küchen; apartment f Wohnung Wohnungen;
        bathroom n Badezimmer Badezimmer; cellar m Keller Keller;
        bedroom n Schlafzimmer Schlafzimmer""",
    "area": """
        city f Stadt Städte; garden m Garten Gärten; village n Dorf Dörfer; park m Park Parks;
        forest m Wald Wälder; valley n Tal Täler; *cave f Höhle Höhlen; *desert f Wüste Wüsten""",
    "onarea": """
        street f Straße Straßen; bridge f Brücke Brücken; mountain m Berg Berge;
        field n Feld Felder;
        island f Insel Inseln; hill m Hügel Hügel; roof n Dach Dächer; farm m Bauernhof Bauernhöfe;
        *balcony m Balkon Balkone; *terrace f Terrasse Terrassen""",
    "shore": """
        river m Fluss Flüsse; lake m See Seen; sea n Meer Meere; coast f Küste Küsten;
        *pond m Teich Teiche""",
    "opening": "window n Fenster Fenster; door f Tür Türen; *gate n Tor Tore",
    "station": "station m Bahnhof Bahnhöfe; airport m Flughafen Flughäfen; border f Grenze Grenzen",
    "event": """
        film m Film Filme; concert n Konzert Konzerte; party f Party Partys; game n Spiel Spiele;
        meeting n Treffen Treffen; wedding f Hochzeit Hochzeiten; trip f Reise Reisen;
        exam f Prüfung Prüfungen; course m Kurs Kurse; war m Krieg Kriege; dinner n Abendessen -;
        exhibition f Ausstellung Ausstellungen; breakfast n Frühstück -;
        *battle f Schlacht Schlachten; *funeral f Beerdigung Beerdigungen; *race n Rennen Rennen""",
    "mishap": "accident m Unfall Unfälle; *miracle n Wunder Wunder",
    "idea": """
        answer f Antwort Antworten; problem n Problem Probleme; question f Frage Fragen;
        mistake m Fehler Fehler; task f Aufgabe Aufgaben; idea f Idee Ideen; plan m Plan Pläne;
        secret n Geheimnis Geheimnisse; dream m Traum Träume; word n Wort Wörter;
        goal n Ziel Ziele; prize m Preis Preise; language f Sprache Sprachen; rule f Regel Regeln;
        decision f Entscheidung Entscheidungen; result n Ergebnis Ergebnisse; law n Gesetz Gesetze;
        number f Zahl Zahlen; *puzzle n Rätsel Rätsel; *joke m Witz Witze""",
    "nature": """
        tree m Baum Bäume; flower f Blume Blumen; star m Stern Sterne; cloud f Wolke Wolken;
        rose f Rose Rosen; leaf/leaves n Blatt Blätter; plant f Pflanze Pflanzen;
        *cactus m Kaktus Kakteen; *lily f Lilie Lilien""",
    "weather": """
        rain m Regen -; snow m Schnee -; weather n Wetter -; storm m Sturm Stürme; wind m Wind -;
        *fog m Nebel -""",
    "money": "money n Geld -",
    "music": "music f Musik -",
    "sport": "football m Fußball -; tennis n Tennis -; chess n Schach -",
}

VERBS = """
    sleep slept slept | schlafen schläft geschlafen | intr ANIMATE | loc ANIMATE
    work | arbeiten | intr PERSON | loc PERSON | prep:for:für:acc PERSON > PERSON
    laugh | lachen | intr PERSON | prep:at:über:acc PERSON > PERSON text idea
    play | spielen | intr person family animal | tr PERSON > sport | loc person family animal
    cry cried cried | weinen | intr PERSON
    sing sang sung | singen - gesungen | intr PERSON | tr PERSON > song
    dance | tanzen | intr PERSON | loc PERSON
    run ran run! | laufen läuft gelaufen s | intr ANIMATE | dir ANIMATE
    swim swam swum! | schwimmen - geschwommen s | intr ANIMATE
    jump | springen - gesprungen s | intr ANIMATE
    smile | lächeln | intr PERSON
    die died died ing=dying | sterben stirbt gestorben s | intr animal king queen soldier hero
    shout | schreien - geschrien | intr PERSON
    smoke | rauchen | intr PERSON
    breathe | atmen | intr ANIMATE
    fly flew flown | fliegen - geflogen s | intr PERSON bird plane
    arrive | an_kommen - angekommen s | intr PERSON vehicle
    leave left left | ab_fahren fährt abgefahren s | intr train bus ship taxi tram boat truck
    stop! | an_halten hält/hältst angehalten | intr train bus car taxi truck tram
    start | an_fangen fängt angefangen | intr event | zu PERSON
    end | enden | intr event
    happen | passieren - - s | intr mishap
    wake woke woken +up | auf_wachen - - s | intr ANIMATE
    get got gotten! +up | auf_stehen - aufgestanden s | intr PERSON
    come came come +back | zurück_kommen - zurückgekommen s | intr PERSON
    fall fell fallen +asleep | ein_schlafen schläft eingeschlafen s | intr ANIMATE
    hurry hurried hurried | beeilen r | intr PERSON
    rest | aus_ruhen r | intr PERSON
    read read read | lesen liest gelesen | tr PERSON > text
    write wrote written | schreiben - geschrieben | tr PERSON > text | that PERSON
    eat ate eaten | essen isst gegessen | tr PERSON > FOOD
    drink drank drunk | trinken - getrunken | tr PERSON > drink
    see saw seen | sehen sieht gesehen st | tr ANIMATE > SIGHT | that PERSON
    buy bought bought | kaufen | tr PERSON > SOLID text FOOD building
    sell sold sold | verkaufen | tr PERSON > SOLID text FOOD building
    love | lieben st | tr PERSON > PERSON animal music nature
    hate | hassen st | tr PERSON > PERSON animal music rain snow wind storm
    know knew known | kennen - gekannt st | tr PERSON > PERSON text song idea
    like | mögen mag/magst gemocht st p=mochte | tr PERSON > PERSON animal FOOD drink music clothes
    need | brauchen st | tr PERSON > SOLID money job
    have had had | haben hat/hast gehabt st p=hatte | tr PERSON > SOLID idea animal money
    find found found | finden - gefunden | tr PERSON > SOLID text idea money
    look &for | suchen | tr ANIMATE > thing clothes PERSON animal text
    look &at | an_sehen sieht angesehen | tr PERSON > building thing nature clothes
    open | öffnen | tr PERSON > opening
    close | schließen - geschlossen | tr PERSON > opening OPENABLE
    wash | waschen wäscht gewaschen | tr PERSON > clothes vehicle
    clean | putzen | tr PERSON > room opening
    repair | reparieren | tr PERSON > vehicle device furniture
    build built built | bauen | tr PERSON > building vehicle furniture
    paint | malen | tr PERSON > nature animal PERSON
    cook | kochen | tr PERSON > COOKABLE
    bake | backen bäckt gebacken | tr PERSON > BAKEABLE
    wear wore worn | tragen trägt getragen | tr PERSON > clothes
    carry carried carried | tragen trägt getragen | tr PERSON > thing furniture
    visit | besuchen | tr PERSON > PERSON building area
    meet met met | treffen trifft getroffen | tr PERSON > PERSON
    forget forgot forgotten! | vergessen vergisst vergessen | tr PERSON > thing clothes idea
        | zu PERSON
    lose lost lost | verlieren - verloren | tr PERSON > thing clothes money game
    break broke broken | zerbrechen zerbricht zerbrochen | tr ANIMATE > BREAKABLE
    steal stole stolen | stehlen stiehlt gestohlen | tr PERSON > SOLID money
    save | retten | tr PERSON > ANIMATE
    invite | ein_laden lädt/lädst eingeladen | tr PERSON > PERSON
    call | an_rufen - angerufen | tr PERSON > PERSON
    pick +up | ab_holen | tr PERSON > PERSON
    turn +on | ein_schalten | tr PERSON > device
    turn +off | aus_schalten | tr PERSON > device
    watch | beobachten | tr ANIMATE > ANIMATE nature
    hear heard heard | hören st | tr ANIMATE > ANIMATE music song | that PERSON
    catch caught caught | fangen fängt gefangen | tr ANIMATE > animal
    feed fed fed | füttern | tr PERSON > animal
    examine | untersuchen - untersucht | tr doctor dentist scientist > ANIMATE
    arrest | verhaften | tr policeman soldier > person job
    understand understood understood | verstehen - verstanden st | tr PERSON > text idea PERSON
    explain | erklären | tr PERSON > problem rule plan poem task novel mistake law puzzle joke
    learn | lernen | tr PERSON > LEARNABLE
    solve | lösen | tr PERSON > SOLVABLE
    answer | beantworten | tr PERSON > ANSWERABLE
    ask | fragen | tr PERSON > PERSON | whether PERSON
    pay paid paid | bezahlen | tr PERSON > PERSON
    throw threw thrown | werfen wirft geworfen | tr PERSON > THROWABLE
    collect | sammeln | tr PERSON > COLLECTABLE
    choose chose chosen | aus_suchen | tr PERSON > clothes thing text furniture
    destroy | zerstören | tr PERSON > building vehicle device
    injure | verletzen | tr ANIMATE > ANIMATE
    hide hid hidden | verstecken | tr PERSON > thing money text
    use | benutzen | tr PERSON > device vehicle
    cut cut cut! | schneiden - geschnitten | tr PERSON > CUTTABLE
    order | bestellen | tr PERSON > FOOD drink
    kiss | küssen | tr PERSON > PERSON
    marry married married | heiraten
        | tr PERSON > prince princess king queen singer actor doctor teacher
    miss | vermissen st | tr PERSON > PERSON animal
    discover | entdecken | tr PERSON > idea area building
    win won won! | gewinnen - gewonnen | tr PERSON > WINNABLE
    translate | übersetzen - übersetzt | tr PERSON > text
    reach | erreichen | tr PERSON > area station goal
    prepare | vor_bereiten - vorbereitet
        | tr PERSON > party dinner meeting trip wedding breakfast concert exhibition
    plant | pflanzen | tr PERSON > PLANTABLE
    help | helfen hilft geholfen | dat PERSON > ANIMATE
    thank | danken | dat PERSON > PERSON
    follow | folgen - - s | dat ANIMATE > ANIMATE
    listen &to | zu_hören | dat PERSON > PERSON
    trust | vertrauen st | dat PERSON > PERSON
    belong &to | gehören - gehört st | dat SOLID building > PERSON
    give gave given | geben gibt gegeben | ditr PERSON > thing text clothes FOOD animal money
    show showed shown | zeigen | ditr PERSON > thing text clothes building
    send sent sent | schicken | ditr PERSON > text thing money
    bring brought brought | bringen - gebracht | ditr PERSON > thing FOOD drink clothes text
    lend lent lent | leihen - geliehen | ditr PERSON > thing clothes vehicle money
    tell told told | erzählen | ditr PERSON > TELLABLE
    offer | an_bieten - angeboten | ditr PERSON > FOOD drink
    wait | warten | prep:for:auf:acc PERSON > PERSON vehicle | loc ANIMATE | intr PERSON
    think thought thought | denken - gedacht st | prep:of:an:acc PERSON > PERSON event idea
        | that PERSON
    dream | träumen | prep:of:von:dat PERSON > PERSON event area animal money
    speak spoke spoken | sprechen spricht gesprochen
        | prep:with:mit:dat PERSON > PERSON | prep:about:über:acc PERSON > idea event PERSON text
    fight fought fought | kämpfen | prep:against:gegen:acc PERSON > PERSON animal
    remember | erinnern - erinnert r st | prep::an:acc PERSON > PERSON event idea
    live | wohnen st | loc PERSON
    sit sat sat! | sitzen - gesessen | loc ANIMATE
    stand stood stood | stehen - gestanden | loc ANIMATE vehicle
    lie lay lain ing=lying | liegen - gelegen | loc animal thing clothes text
    stay | bleiben - geblieben s | loc PERSON
    go went gone | gehen - gegangen s | dir PERSON
    drive drove driven | fahren fährt gefahren s | dir PERSON
    come came come | kommen - gekommen s | dir PERSON
    travel | reisen - - s | intr PERSON
    put put put! | stellen | put PERSON > STANDING
    lay laid laid | legen | put PERSON > text clothes FLAT
    say said said | sagen | that PERSON
    believe | glauben st | that PERSON
    know knew known | wissen weiß/weißt gewusst st p=wusste | that PERSON
    hope | hoffen | that PERSON | zu PERSON
    claim | behaupten | that PERSON
    try tried tried | versuchen | zu PERSON
    promise | versprechen verspricht versprochen | zu PERSON
    *cough | husten | intr PERSON
    *pray | beten - gebetet | intr PERSON
    *whistle | pfeifen - gepfiffen | intr PERSON
    *hesitate | zögern | intr PERSON
    *whisper | flüstern | intr PERSON
    *tremble | zittern | intr ANIMATE
    *hug! | umarmen - umarmt | tr PERSON > PERSON
    *admire | bewundern st | tr PERSON > PERSON building
    *punish | bestrafen | tr PERSON > PERSON
    *bite bit bitten ing=biting | beißen - gebissen | tr animal > ANIMATE
    *insult | beleidigen | tr PERSON > PERSON
    *count | zählen | tr PERSON > COLLECTABLE
    *betray | verraten verrät/verrätst verraten | tr PERSON > PERSON
    *obey | gehorchen | dat PERSON > PERSON
    *forgive forgave forgiven | verzeihen - verziehen | dat PERSON > PERSON
    *draw drew drawn | zeichnen | tr PERSON > nature animal
    *borrow | aus_leihen - ausgeliehen | tr PERSON > vehicle text
    *hunt | jagen | tr PERSON > animal
    *inherit | erben - geerbt | tr PERSON > building money furniture
    *weigh | wiegen - gewogen | tr PERSON > animal COLLECTABLE
    *attack | an_greifen - angegriffen | tr ANIMATE > ANIMATE
"""


ADJECTIVES = """
    big groß animal thing furniture vehicle building room area nature food > bigger größer
    old alt ANIMATE SOLID building room bridge > older älter
    small klein animal thing furniture vehicle building room area food > smaller kleiner
    new neu SOLID job text building apartment idea
    difficult schwierig HARD > more schwieriger
    easy einfach HARD
    wide breit BROAD > wider breiter
    loud laut device music child dog party street > louder lauter
    lazy faul person family cat > lazier fauler
    brave mutig person soldier brother knight > braver mutiger
    dangerous gefährlich PERILOUS > more gefährlicher
    wonderful wunderbar text song event idea weather area music
    terrible schrecklich mishap event weather mistake storm war
    wrong falsch CORRECTABLE
    correct richtig CORRECTABLE
    good gut PERSON text song event idea food drink > better besser
    beautiful schön family area building clothes nature song island lake coast
    young jung ANIMATE > younger jünger
    bad schlecht text event food idea weather > worse schlechter
    friendly freundlich PERSON > friendlier freundlicher
    happy glücklich PERSON > happier glücklicher
    tired müde=müd ANIMATE
    sad traurig PERSON song story
    angry wütend PERSON
    sick krank ANIMATE
    rich reich person job > richer reicher
    poor arm person job > poorer ärmer
    clever klug ANIMATE > cleverer klüger
    strong stark ANIMATE wind storm coffee > stronger stärker
    famous berühmt person job building text song
    expensive teuer=teur SOLID building hotel wine > more teurer
    cheap billig SOLID > cheaper billiger
    fast schnell vehicle horse > faster schneller
    slow langsam vehicle > slower langsamer
    interesting interessant text event idea museum > more interessanter
    important wichtig text event idea person job
    boring langweilig text event course
    long lang text event street river rope > longer länger
    short kurz text event > shorter kürzer
    red rot clothes vehicle thing furniture flower
    blue blau clothes vehicle thing furniture
    green grün clothes vehicle thing furniture apple
    black schwarz clothes vehicle thing furniture animal
    white weiß clothes vehicle thing furniture animal
    yellow gelb clothes vehicle thing flower
    brown braun clothes furniture animal bag
    gray grau clothes furniture mouse cloud cat
    dirty schmutzig SOLID room opening
    clean sauber=sauber clothes room cup glass plate opening
    empty leer HOLDER room restaurant cinema church
    dark dunkel=dunkl room forest street cellar
    bright hell room kitchen office star
    warm warm drink clothes soup bread room
    cold kalt drink soup room weather wind > colder kälter
    hot heiß drink soup
    fresh frisch FOOD juice
    sweet süß FRUIT cake juice
    delicious lecker FOOD drink dinner breakfast
    heavy schwer STOUT > heavier schwerer
    wet nass clothes street
    high hoch=hoh TALL > higher höher
    deep tief DEEP > deeper tiefer
    narrow schmal BROAD > narrower schmaler
    modern modern building device vehicle furniture
    broken kaputt device vehicle furniture clock lamp cup glass
    quiet ruhig person family room area hotel
    polite höflich PERSON
    stupid dumm ANIMATE question idea mistake
    hungry hungrig ANIMATE
    thirsty durstig ANIMATE
    proud stolz PERSON
    lonely einsam PERSON island
    healthy gesund ANIMATE FRUIT
    weak schwach ANIMATE > weaker schwächer
    nervous nervös PERSON
    honest ehrlich PERSON
    strange seltsam text idea ANIMATE song
    huge riesig animal building nature vehicle cake
    funny lustig text film person family > funnier lustiger
    crazy verrückt PERSON idea plan
    sharp scharf BLADE
    soft weich COSY
    round rund table ball mirror plate
    wild wild animal
    thin dünn ANIMATE rope > thinner dünner
    fat dick ANIMATE > fatter dicker
    thick dick book coat blanket report
    *blind blind ANIMATE
    *deaf taub PERSON
    *wise weise=weis PERSON
    *cruel grausam king queen enemy war law
    *shy schüchtern PERSON
    *greedy gierig PERSON
    *loyal treu friend soldier dog
    *noble edel=edl person
    *pale blass PERSON
    *elegant elegant clothes hotel PERSON
    *holy heilig building mountain
    *golden golden ring coin crown cup
    *stubborn stur PERSON
    *ripe reif FRUIT
    *clumsy ungeschickt PERSON
    *jealous eifersüchtig PERSON
    *ugly hässlich clothes building furniture animal
    *dusty staubig furniture room book
    *transparent durchsichtig glass bottle window
"""

# After the held-out word: irregular forms (plural; or past and participle), `pred` for an
# adjective that stands only after `be`.
SYNONYMS = """
    noun car automobile; noun doctor physician; noun sofa couch; noun child kid; noun shop store;
    noun picture image; noun present gift; noun bike bicycle; noun street road; noun film movie;
    noun stone rock; noun plane airplane; noun lawyer attorney; noun policeman cop;
    noun task assignment; noun mistake error; noun trip journey; noun dinner supper;
    noun photo photograph; noun answer reply; noun apartment flat; noun taxi cab;
    noun author writer; noun teacher instructor; noun coast shore;
    noun cellar basement; noun pub tavern; noun enemy foe; noun friend buddy; noun guest visitor;
    noun prize award; noun carpet rug; noun prison jail; noun city town; noun phone telephone;
    noun story tale; noun sea ocean; noun money cash; noun goal target; noun boss chief;
    noun rabbit bunny; noun cup mug; noun game match; noun soldier trooper;
    verb start begin began begun!; verb buy purchase; verb repair fix; verb close shut shut shut!;
    verb help assist; verb choose select; verb cry weep wept wept; verb build construct;
    verb need require; verb throw toss; verb happen occur!; verb speak talk; verb jump leap;
    verb live reside; verb collect gather; verb leave depart; verb watch observe;
    verb examine inspect; verb shout scream; verb save rescue; verb injure hurt hurt hurt;
    verb end conclude; verb hide conceal; verb stop halt;
    verb smile grin!;
    adj big large; adj small little; adj fast quick; adj clever smart; adj beautiful lovely;
    adj sick ill pred; adj rich wealthy; adj tired weary; adj angry furious; adj strange weird;
    adj quiet calm; adj difficult hard; adj easy simple; adj brave courageous; adj lazy idle;
    adj dirty filthy; adj cheap inexpensive; adj expensive costly; adj correct right;
    adj wrong incorrect; adj friendly kind; adj terrible horrible; adj wonderful marvelous;
    adj funny amusing; adj boring dull; adj huge enormous;
    adj stupid foolish; adj crazy insane; adj sad unhappy; adj loud noisy;
    adj wide broad; adj famous renowned
"""

# Held-out forms that BERT's uncased vocabulary splits: never used, so that each one is whole.
SPLIT_FORMS = frozenset(
    (
        "couches",
        "suppers",
        "cabs",
        "basements",
        "taverns",
        "foes",
        "rugs",
        "jails",
        "telephones",
        "cashes",
        "bunnies",
        "mugs",
        "fixes",
        "shuts",
        "weeps",
        "constructs",
        "tosses",
        "departs",
        "inspects",
        "conceals",
        "concealing",
        "halts",
        "halting",
    )
)


def english_plural(noun: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", noun):
        return noun + "es"
    if re.search(r"[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + "s"


def english_past(base: str, doubles: bool) -> str:
    if base.endswith("e"):
        return base + "d"
    if re.search(r"[^aeiou]y$", base):
        return base[:-1] + "ied"
    return base + (base[-1] if doubles else "") + "ed"


def english_ing(base: str, doubles: bool) -> str:
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return base + (base[-1] if doubles else "") + "ing"


def _expand(kinds: str) -> tuple[str, ...]:
    """Spell out groups; a word that is no kind is a noun's own name and stays."""
    return tuple(k for word in kinds.split() for k in GROUPS.get(word, word).split())


def _nouns() -> list[Noun]:
    nouns = []
    for kind, table in NOUNS.items():
        for entry in table.split(";"):
            en, gender, de, plural, *flags = entry.split()
            rare, (singular, _, irregular) = en[0] == "*", en.lstrip("*").partition("/")
            en_plural = irregular or english_plural(singular)
            g: Gender = "m" if gender == "m" else "f" if gender == "f" else "n"
            nouns.append(
                Noun(singular, singular, en_plural, de, plural, g, kind, "w" in flags, rare)
            )
    return nouns


def _english_forms(words: list[str]) -> tuple[str, str, str, str]:
    """Base, past, participle, -ing from `[base, past, participle]`; `!` on the last doubles."""
    doubles = words[-1].endswith("!")
    words = [w.rstrip("!") for w in words]
    past = english_past(words[0], doubles)
    _, past, participle = words if len(words) == 3 else (words[0], past, past)
    return words[0], past, participle, english_ing(words[0], doubles)


def _frame(text: str) -> Frame:
    head, _, objects = text.partition(">")
    name, _, subjects = head.strip().partition(" ")
    name, *preposition = name.split(":")
    governed = (preposition[0], preposition[1], preposition[2]) if preposition else None
    return Frame(name, _expand(subjects), _expand(objects), governed)


def _verbs() -> list[Verb]:
    verbs = []
    for line in re.sub(r"\n\s*\|", " |", VERBS.strip()).splitlines():
        english, german, *frames = (part.strip() for part in line.split("|"))
        words = english.lstrip("*").split()
        particle = next((w for w in words if w[0] in "+&"), "")
        ing = next((w[4:] for w in words if w.startswith("ing=")), "")
        forms = [w for w in words if w[0] not in "+&" and "=" not in w]
        base, past, participle, regular_ing = _english_forms(forms)
        flags = [w for w in german.split()[1:] if w in ("s", "r", "st") or w.startswith("p=")]
        infinitive, *rest = [w for w in german.split() if w not in flags]
        third, second = (rest[0] if rest else "-"), ""
        if "/" in third:
            third, second = third.split("/")
        prefix, _, stem = infinitive.rpartition("_")
        verbs.append(
            Verb(
                en=base,
                en_past=past,
                en_participle=participle,
                en_ing=ing or regular_ing,
                particle=particle[1:],
                fixed_preposition=particle.startswith("&"),
                de=stem,
                prefix=prefix,
                de_third="" if third == "-" else third,
                de_second=second,
                de_participle="" if len(rest) < 2 or rest[1] == "-" else rest[1],
                preterite=next((f[2:] for f in flags if f.startswith("p=")), ""),
                sein="s" in flags,
                reflexive="r" in flags,
                stative="st" in flags,
                rare=english.startswith("*"),
                frames=tuple(_frame(f) for f in frames),
            )
        )
    return verbs


def _adjectives() -> list[Adjective]:
    adjectives = []
    for line in ADJECTIVES.strip().splitlines():
        en, german, *rest = line.split()
        de, _, stem = german.partition("=")
        kind_text, _, higher = " ".join(rest).partition(" > ")
        comparative = None
        if higher:
            better, _, besser = higher.partition(" ")
            comparative = (f"more {en}" if better == "more" else better, besser)
        kinds = _expand(kind_text)
        adjectives.append(
            Adjective(en.lstrip("*"), de, stem or de, kinds, comparative, en[0] == "*")
        )
    return adjectives


NOUN_LIST = _nouns()
VERB_LIST = _verbs()
ADJECTIVE_LIST = _adjectives()


def noun(en: str) -> Noun:
    return next(n for n in NOUN_LIST if n.en == en)


def verb(en: str, frame: str = "") -> Verb:
    """The verb with this English (`look for`, `pick up`), and this frame where two share it."""
    for v in VERB_LIST:
        named = " ".join(filter(None, (v.en, v.particle))) == en
        if named and (not frame or any(f.name == frame for f in v.frames)):
            return v
    raise StopIteration(en)


def adjective(en: str) -> Adjective:
    return next(a for a in ADJECTIVE_LIST if a.en == en)


def _synonyms() -> list[Synonym]:
    synonyms = []
    for entry in SYNONYMS.split(";"):
        category, known, word, *extra = entry.split()
        if category == "noun":
            base = noun(known)
            plural = extra[0] if extra else english_plural(word)
            synonyms.append(Synonym(base, replace(base, en=word, en_plural=plural)))
        elif category == "verb":
            old = verb(known)
            en, past, participle, ing = _english_forms([word, *extra])
            new = replace(old, en=en, en_past=past, en_participle=participle, en_ing=ing)
            synonyms.append(Synonym(old, new))
        else:
            quality = adjective(known)
            pred = "pred" in extra
            held = replace(quality, en=word, comparative=None, predicative_only=pred)
            synonyms.append(Synonym(quality, held))
    return synonyms


SYNONYM_LIST = _synonyms()


def forms(lexeme: Lexeme) -> tuple[str, ...]:
    """Every inflected English form, in lower case."""
    if isinstance(lexeme, Noun):
        return (lexeme.en, lexeme.en_plural)
    if isinstance(lexeme, Verb):
        third = "has" if lexeme.en == "have" else english_plural(lexeme.en)
        third = "goes" if lexeme.en == "go" else third
        return (lexeme.en, third, lexeme.en_past, lexeme.en_participle, lexeme.en_ing)
    return (lexeme.en, *(lexeme.comparative[:1] if lexeme.comparative else ()))
